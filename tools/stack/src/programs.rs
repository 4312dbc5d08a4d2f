//! Finding the server programs.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::StackError;

/// The name of the private folder, in the memfleet folder.
const HOME: &str = ".memfleet";
/// The oldest PostgreSQL that memfleet runs on.
pub(crate) const OLDEST_POSTGRES: u32 = 15;

/// The server programs, found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The `nats-server` program.
    pub nats_server: PathBuf,
    /// The folder that holds `postgres` and `initdb`.
    pub postgres_bin: PathBuf,
    /// The `qdrant-local` program, or where it was searched for.
    qdrant_local: Result<PathBuf, Vec<PathBuf>>,
}

impl Programs {
    /// Finds the programs, for each the first of:
    ///
    /// 1. the one that the environment names: `MEMFLEET_NATS_SERVER` (the path of `nats-server`) and
    ///    `MEMFLEET_PG_BIN` (the folder that holds `postgres` and `initdb`);
    /// 2. `servers/nats/nats-server` and `servers/postgres/bin` in `.memfleet` of the current folder or of one above
    ///    it, or in the folder that `MEMFLEET_HOME` names instead;
    /// 3. for PostgreSQL, an installed `/usr/lib/postgresql/N/bin` with N at least 15, the highest first.
    ///
    /// `qdrant-local`, which may be missing if no vector store is started, is the one that `MEMFLEET_QDRANT_LOCAL`
    /// names, else `bin/qdrant-local` in the same `.memfleet`.
    ///
    /// A path in the environment that does not exist is an error; the search does not go on.
    ///
    /// # Errors
    /// [`StackError::Missing`] names the program, where it was searched for, and what to do.
    pub fn find() -> Result<Self, StackError> {
        Self::find_in(&Places::of_this_process())
    }

    /// As [`Programs::find`], in the given places.
    ///
    /// # Errors
    /// As [`Programs::find`].
    pub fn find_in(places: &Places) -> Result<Self, StackError> {
        Ok(Self {
            nats_server: find_nats(places)?,
            postgres_bin: find_postgres(places)?,
            qdrant_local: find_qdrant(places),
        })
    }

    /// The `qdrant-local` program.
    ///
    /// # Errors
    /// [`StackError::Missing`] names where it was searched for, and what to do.
    pub fn qdrant_local(&self) -> Result<PathBuf, StackError> {
        self.qdrant_local.clone().map_err(|searched| StackError::Missing {
            what: "qdrant-local",
            searched,
            variable: "MEMFLEET_QDRANT_LOCAL",
            meaning: "the path of the qdrant-local program, which `make programs` builds",
        })
    }
}

/// Where [`Programs::find_in`] searches.
#[derive(Debug, Clone)]
pub struct Places {
    /// `MEMFLEET_NATS_SERVER`: the path of `nats-server`.
    pub nats_server: Option<PathBuf>,
    /// `MEMFLEET_PG_BIN`: the folder that holds `postgres` and `initdb`.
    pub postgres_bin: Option<PathBuf>,
    /// `MEMFLEET_QDRANT_LOCAL`: the path of `qdrant-local`.
    pub qdrant_local: Option<PathBuf>,
    /// `MEMFLEET_HOME`: the folder used in place of `.memfleet`.
    pub home: Option<PathBuf>,
    /// The folder whose `.memfleet`, or that of one above it, is searched.
    pub current: PathBuf,
    /// The folder of installed versions of PostgreSQL, each `N/bin`.
    pub installed: PathBuf,
}

impl Places {
    /// The places given by the environment and the current folder of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            nats_server: named("MEMFLEET_NATS_SERVER"),
            postgres_bin: named("MEMFLEET_PG_BIN"),
            qdrant_local: named("MEMFLEET_QDRANT_LOCAL"),
            home: named("MEMFLEET_HOME"),
            current: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            installed: PathBuf::from("/usr/lib/postgresql"),
        }
    }

    /// The private folder: the one that `MEMFLEET_HOME` names, else the nearest `.memfleet` that exists, else
    /// `.memfleet` in the current folder, which does not exist yet.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        let homes = self.homes();
        let nearest = homes.iter().find(|home| home.is_dir()).or_else(|| homes.first());
        nearest.cloned().unwrap_or_else(|| self.current.join(HOME))
    }

    fn homes(&self) -> Vec<PathBuf> {
        match &self.home {
            Some(home) => vec![home.clone()],
            None => self.current.ancestors().map(|folder| folder.join(HOME)).collect(),
        }
    }

    /// The installed versions, the highest first.
    fn installed_bins(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.installed) else { return Vec::new() };
        let version = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
        let mut versions: Vec<u32> = entries.flatten().filter_map(version).collect();
        versions.retain(|version| *version >= OLDEST_POSTGRES);
        versions.sort_unstable_by(|one, other| other.cmp(one));
        versions.iter().map(|version| self.installed.join(version.to_string()).join("bin")).collect()
    }
}

fn find_nats(places: &Places) -> Result<PathBuf, StackError> {
    let candidates = match &places.nats_server {
        Some(named) => vec![named.clone()],
        None => places.homes().iter().map(|home| home.join("servers/nats/nats-server")).collect(),
    };
    first(candidates, is_program).map_err(|searched| StackError::Missing {
        what: "nats-server",
        searched,
        variable: "MEMFLEET_NATS_SERVER",
        meaning: "the path of a nats-server program",
    })
}

fn find_qdrant(places: &Places) -> Result<PathBuf, Vec<PathBuf>> {
    let candidates = match &places.qdrant_local {
        Some(named) => vec![named.clone()],
        None => places.homes().iter().map(|home| home.join("bin/qdrant-local")).collect(),
    };
    first(candidates, is_program)
}

fn find_postgres(places: &Places) -> Result<PathBuf, StackError> {
    let candidates = match &places.postgres_bin {
        Some(named) => vec![named.clone()],
        None => {
            let ours = places.homes().into_iter().map(|home| home.join("servers/postgres/bin"));
            ours.chain(places.installed_bins()).chain([places.installed.join("N/bin")]).collect()
        }
    };
    let holds_both = |bin: &Path| is_program(&bin.join("postgres")) && is_program(&bin.join("initdb"));
    first(candidates, holds_both).map_err(|searched| StackError::Missing {
        what: "PostgreSQL (the programs postgres and initdb)",
        searched,
        variable: "MEMFLEET_PG_BIN",
        meaning: "the folder that holds these programs of PostgreSQL 15 or newer",
    })
}

/// The first candidate that fits, made absolute because the servers run in other folders; else all of them.
fn first(candidates: Vec<PathBuf>, fits: impl Fn(&Path) -> bool) -> Result<PathBuf, Vec<PathBuf>> {
    let found =
        candidates.iter().find(|candidate| fits(candidate)).and_then(|found| fs::canonicalize(found).ok());
    found.ok_or(candidates)
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
