//! Searches where no query shows anything: in the files of servers, and in the memory of processes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use memchr::memmem::Finder;
use testkit::lines_on;

/// The files of a folder and of its folders that have these bytes. What a server removes meanwhile has none.
pub fn files_with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    assert!(folder.is_dir(), "{} is there", folder.display());
    let finder = Finder::new(bytes);
    let has = |file: &PathBuf| std::fs::read(file).is_ok_and(|content| finder.find(&content).is_some());
    let mut found: Vec<PathBuf> = files(folder).into_iter().filter(has).collect();
    found.sort();
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The bytes that these hexadecimal digits stand for.
pub fn bytes(digits: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("a byte");
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// The folder with the files of the broker's streams, and its log.
pub fn broker_folder(pid: u32) -> PathBuf {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("the broker runs");
    let arguments: Vec<String> =
        line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    let file = arguments.iter().map(Path::new).find(|path| path.is_absolute() && path.extension().is_some());
    file.and_then(Path::parent).expect("its configuration").to_owned()
}

/// The folder with the files of a database, into which the server has written all that it has.
pub async fn database_folder(url: &str) -> PathBuf {
    let mut connection = store::connect(url).await.expect("a database");
    connection.batch_execute("CHECKPOINT").await.expect("a checkpoint");
    let folder = "current_setting('data_directory') || '/base/' || oid FROM pg_database WHERE datname = current_database()";
    lines_on(&mut connection, folder).await.remove(0).into()
}

/// The tables of a database of these kinds, as SQL names them. Those of the server are not among them: other tests use them.
async fn tables(connection: &mut AsyncPgConnection, kinds: &str) -> String {
    let select = format!(
        "c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ({kinds}) AND n.nspname IN ('public', 'audit', 'sec') ORDER BY 1"
    );
    lines_on(connection, &select).await.join(", ")
}

/// Has the planner take samples of all tables.
pub async fn analyze_database(url: &str) {
    let mut connection = store::connect(url).await.expect("a database");
    let tables = tables(&mut connection, "'r', 'p'").await;
    connection.batch_execute(&format!("ANALYZE {tables}")).await.expect("samples");
}

/// Has a database write all its tables anew. The samples of the planner are taken anew first: they are values of rows, too.
pub async fn rewrite_database(url: &str) {
    analyze_database(url).await;
    let mut connection = store::connect(url).await.expect("a database");
    let tables = tables(&mut connection, "'r'").await;
    let vacuum = format!("VACUUM (FULL) pg_catalog.pg_statistic, {tables}");
    connection.batch_execute(&vacuum).await.expect("new files");
}

/// The log of the PostgreSQL server of a database: the standard error of its process.
pub async fn database_log(url: &str) -> PathBuf {
    let mut connection = store::connect(url).await.expect("a database");
    let folder = "current_setting('data_directory') FROM (VALUES (1)) AS one";
    let folder = lines_on(&mut connection, folder).await.remove(0);
    let file = std::fs::read_to_string(Path::new(&folder).join("postmaster.pid")).expect("a server");
    let pid: u32 = file.lines().next().expect("a line").trim().parse().expect("a number");
    std::fs::read_link(format!("/proc/{pid}/fd/2")).expect("the log of a server of this machine")
}

/// How much of a memory is read at a time.
const PART: usize = 1 << 20;

/// Whether a process has these bytes in memory that it may write to and that is of no file: its heap and its stacks.
pub fn memory_has(pid: u32, bytes: &[u8]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("a process that this test started");
    let finder = Finder::new(bytes);
    maps.lines().filter_map(anonymous).any(|(start, end)| region_has(&memory, start, end, &finder))
}

/// Where a region of memory begins and ends, if it may be written to and is of no file.
fn anonymous(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let inode = words.nth(2)?;
    let (start, end) = range.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    (rights.starts_with("rw") && inode == "0").then_some((number(start)?, number(end)?))
}

/// Parts overlap, so that bytes at their border are found. The process may have given a part back since it was listed: then it has nothing there.
fn region_has(memory: &File, start: u64, end: u64, finder: &Finder<'_>) -> bool {
    let mut part = vec![0; PART + finder.needle().len() - 1];
    let mut at = start;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let wanted = left.min(part.len());
        let read = memory.read_at(&mut part[..wanted], at).unwrap_or(0);
        if finder.find(&part[..read]).is_some() {
            return true;
        }
        at += PART as u64;
    }
    false
}
