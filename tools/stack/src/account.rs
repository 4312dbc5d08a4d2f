//! Whom PostgreSQL runs as: us, or, because it refuses root, an unprivileged user that exists.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::error::StackError;

/// An unprivileged user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Account {
    /// The user to drop to; none when we are not root and PostgreSQL can run as we do.
    pub(crate) fn to_drop_to() -> Result<Option<Self>, StackError> {
        if !is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = Self::named(&users, "postgres").or_else(|| Self::named(&users, "nobody"));
        found.map(Some).ok_or(StackError::NoAccount)
    }

    /// The owner of a file or folder that exists and does not belong to root.
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

    /// Gives the file or folder to this user.
    pub(crate) fn give(self, path: &Path) -> Result<(), StackError> {
        chown(path, Some(self.uid), Some(self.gid))
            .map_err(|source| StackError::file("change the owner of", path, source))
    }
}

/// Whether every user can pass through the folder and all above it.
pub(crate) fn reachable(folder: &Path) -> bool {
    folder
        .ancestors()
        .filter(|ancestor| !ancestor.as_os_str().is_empty())
        .all(|ancestor| fs::metadata(ancestor).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_from_the_list_of_users() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        assert_eq!(Account::named(users, "nobody"), Some(Account { uid: 65534, gid: 65533 }));
        assert_eq!(Account::named(users, "postgres"), None);
        assert_eq!(Account::named(users, "root"), None, "dropping to root is no drop");
    }
}
