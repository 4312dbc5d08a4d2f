//! The operating-system user that PostgreSQL runs as: the one of this process or, since PostgreSQL refuses root, an
//! existing unprivileged one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::error::StackError;

/// An unprivileged user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OsUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl OsUser {
    /// The user to run PostgreSQL as; none where this process does not run as root and PostgreSQL can run as the same
    /// user.
    pub(crate) fn unprivileged() -> Result<Option<Self>, StackError> {
        if !is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = Self::named(&users, "postgres").or_else(|| Self::named(&users, "nobody"));
        found.map(Some).ok_or(StackError::NoUnprivilegedUser)
    }

    /// The owner of a file or folder, if it exists and does not belong to root.
    pub(crate) fn owner_of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok().filter(|meta| meta.uid() != 0)?;
        Some(Self { uid: meta.uid(), gid: meta.gid() })
    }

    fn named(users: &str, name: &str) -> Option<Self> {
        let mut fields = users.lines().map(|line| line.split(':')).find_map(|mut fields| {
            let found = fields.next() == Some(name);
            found.then_some(fields)
        })?;
        let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { uid, gid })
    }

    /// Makes this user the owner of a file or folder.
    pub(crate) fn own(self, path: &Path) -> Result<(), StackError> {
        chown(path, Some(self.uid), Some(self.gid))
            .map_err(|source| StackError::file("change the owner of", path, source))
    }
}

/// Whether every user can enter the folder and all above it.
pub(crate) fn is_reachable_by_all(folder: &Path) -> bool {
    folder
        .ancestors()
        .filter(|ancestor| !ancestor.as_os_str().is_empty())
        .all(|ancestor| fs::metadata(ancestor).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_from_the_list_of_users() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        assert_eq!(OsUser::named(users, "nobody"), Some(OsUser { uid: 65534, gid: 65533 }));
        assert_eq!(OsUser::named(users, "postgres"), None);
        assert_eq!(OsUser::named(users, "root"), None, "root is not unprivileged");
    }
}
