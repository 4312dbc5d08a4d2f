//! `memfleet dev`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use cli::key_file::write_private;
use cli::outln;
use cli::output::step;
use cli::signal::interrupted;
use config::Settings;
use contract::UserId;
use fleet::{Fleet, WorkerName, health, privacy, sealer};
use stack::{Places, Stack, StackOptions};

use crate::local::Local;
use crate::this_program;

const HELP: &str = "\
Prints the addresses of the servers. While they run, the folder contains memfleet.toml, which other commands use with \
--config. The servers' data is kept in the folder for the next run. `make clean` removes the default folder, but no other.";

/// Runs private servers and all workers on this machine until Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct DevArgs {
    /// The folder for the servers' data and the configuration. Default: `dev` in $MEMFLEET_HOME or .memfleet.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Allow web pages to subscribe to this user's events over WebSocket; docs/examples/live.html does. May be
    /// repeated.
    #[arg(long, value_name = "USER", value_parser = clap::value_parser!(i32).range(1..))]
    live: Vec<i32>,
}

/// The name of the configuration file with which other commands connect to the servers.
const FILE: &str = "memfleet.toml";
/// Its first line.
const MARK: &str = "# Points to the servers of `memfleet dev` while they run. It holds their passwords.";

/// How often the server processes are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs `memfleet dev`.
///
/// # Errors
/// If a server cannot be started or exits unexpectedly, or a worker fails.
pub async fn execute(args: DevArgs, settings: &Settings) -> anyhow::Result<()> {
    let folder = args.dir.unwrap_or_else(|| Places::of_this_process().home().join("dev"));
    let folder =
        std::path::absolute(&folder).with_context(|| format!("invalid folder {}", folder.display()))?;
    refuse_foreign_file(&folder.join(FILE))?;
    let listener = health::listen(settings).await?;
    let listeners: Vec<UserId> = args
        .live
        .iter()
        .map(|user| UserId::new(*user))
        .collect::<Result<_, _>>()
        .map_err(anyhow::Error::msg)?;
    let starting = async {
        tokio::select! {
            // First, so that signal handlers are installed before any server that could be left running is started.
            biased;
            stopped = interrupted() => { stopped?; bail!("interrupted") }
            local = Local::kept(settings, &folder, StackOptions { vectors: true, ..StackOptions::default() }, &listeners) => local,
        }
    };
    let local = step("starting private NATS, PostgreSQL and vector store", starting).await?;
    let mut fleet = Fleet::start(&WorkerName::of(&local.settings), &local.settings);
    let _health = fleet.serve_health(listener);
    let ended = serve(&folder, &local, &mut fleet, &listeners).await;
    let stopping = async {
        let workers = fleet.stop().await;
        let servers = local.stop().await;
        workers.map_err(anyhow::Error::from).and(servers)
    };
    let stopped = step("stopping everything", stopping).await;
    // The first failure is the cause; it takes precedence over errors while stopping.
    ended.and(stopped)
}

async fn serve(folder: &Path, local: &Local, fleet: &mut Fleet, listeners: &[UserId]) -> anyhow::Result<()> {
    let file = folder.join(FILE);
    write_private(&file, &configuration(&local.settings)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    show_addresses(&file, &local.settings);
    show_pages(folder, local, listeners)?;
    let ended = tokio::select! {
        ended = fleet.ended() => ended.map_err(Into::into).and_then(|()| bail!("a worker ended unexpectedly")),
        ended = server_ended(local.stack(), folder) => ended,
        () = sealer::follow(&local.settings) => Ok(()),
        () = privacy::follow(&local.settings) => Ok(()),
        stopped = interrupted() => stopped,
    };
    // The servers are about to stop. A file that cannot be removed only leads to failing connections.
    let _ = std::fs::remove_file(&file);
    ended
}

fn show_addresses(file: &Path, settings: &Settings) {
    let workers: Vec<&str> = WorkerName::of(settings).into_iter().map(WorkerName::as_str).collect();
    let (file, nats, postgres) = (file.display(), &settings.nats.url, &settings.postgres.url);
    outln!("\nRunning until Ctrl-C:\n");
    outln!("  NATS        {nats}");
    outln!("  PostgreSQL  {postgres}");
    if let Some(vectors) = &settings.vectors.url {
        outln!("  vectors     {vectors}");
    }
    outln!("  workers     {}", workers.join(", "));
    outln!("\nFrom another terminal:\n");
    outln!("  alias memfleet='{} --config {file}'", this_program());
    outln!("  memfleet status");
    outln!("  echo '{{\"username\":\"ada\",\"email\":\"ada@example.org\"}}' |");
    outln!("    memfleet publish --wait memory.req.simple-chat.user.put.1 -");
    outln!("  memfleet ask session.list --user 1\n");
}

/// Prints the addresses of the example page. The nkey seed is in the fragment, which browsers do not send to the
/// server.
fn show_pages(folder: &Path, local: &Local, listeners: &[UserId]) -> anyhow::Result<()> {
    let socket = local.stack().and_then(|stack| stack.nats.websocket_url());
    let Some(socket) = socket.filter(|_| !listeners.is_empty()) else { return Ok(()) };
    outln!("Web page with live events. Run `scripts/live-client docs/examples` and");
    outln!("`python3 -m http.server -b 127.0.0.1 -d docs/examples 8000`, then open:\n");
    for user in listeners {
        let seed = folder.join(format!("nkeys/live-{user}.nk"));
        let seed =
            std::fs::read_to_string(&seed).with_context(|| format!("cannot read {}", seed.display()))?;
        outln!("  http://127.0.0.1:8000/live.html?url={socket}&user={user}#seed={}", seed.trim());
    }
    outln!();
    Ok(())
}

/// Refuses a configuration file that `memfleet dev` did not create: it would be overwritten, and removed at the end.
fn refuse_foreign_file(file: &Path) -> anyhow::Result<()> {
    match std::fs::read_to_string(file) {
        Ok(text) if !text.starts_with(MARK) => {
            bail!("{} was not created by `memfleet dev`; choose another folder with --dir", file.display())
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// The configuration file for the servers: every option that differs from its default.
fn configuration(settings: &Settings) -> anyhow::Result<String> {
    let (all, defaults) = (serde_json::to_value(settings)?, serde_json::to_value(Settings::default())?);
    let mut text = format!("{MARK}\n");
    for (section, options) in all.as_object().into_iter().flatten() {
        let own = options.as_object().into_iter().flatten().filter(|(name, value)| {
            !value.is_null() && defaults.get(section).and_then(|of| of.get(name)) != Some(value)
        });
        // Strings, numbers and booleans have the same syntax in TOML and JSON.
        let lines: String = own.map(|(name, value)| format!("{name} = {value}\n")).collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n[{section}]\n{lines}"));
        }
    }
    Ok(text)
}

/// Waits until a server process has exited unexpectedly, and returns it as an error.
async fn server_ended(stack: Option<&Stack>, folder: &Path) -> anyhow::Result<()> {
    let Some(stack) = stack else { return std::future::pending().await };
    loop {
        let vectors = stack.qdrant.as_ref().map(|qdrant| ("qdrant-local", qdrant.pid()));
        let both = [("nats-server", stack.nats.pid()), ("PostgreSQL", stack.postgres.pid())];
        for (name, pid) in both.into_iter().chain(vectors) {
            if !runs(pid) {
                bail!("{name} exited unexpectedly; see its log under {}", folder.display());
            }
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Whether a child of this process is running. After its exit it remains a zombie until its status is collected.
fn runs(pid: u32) -> bool {
    let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the process name, which is in parentheses and may contain any character.
    let state = line.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    !state.is_some_and(|state| state.starts_with('Z'))
}
