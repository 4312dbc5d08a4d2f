//! The servers a command works on: a private stack of its own, or those that the configuration names.

use std::path::Path;

use anyhow::Context;
use runtime::Settings;
use runtime::broker;
use stack::{Stack, StackOptions};

/// Servers that are migrated and have their streams.
pub struct Local {
    /// How to reach them.
    pub settings: Settings,
    stack: Option<Stack>,
}

impl Local {
    /// Starts private servers in a folder that is removed when they stop.
    ///
    /// # Errors
    /// If a server's program is missing, or one does not start, or cannot be set up.
    pub async fn temporary(settings: &Settings, options: StackOptions) -> anyhow::Result<Self> {
        let stack = Stack::temporary(options).await?;
        Self::over(stack, settings).await
    }

    /// Starts private servers in a folder that stays.
    ///
    /// # Errors
    /// If a server's program is missing, or one does not start, or cannot be set up.
    pub async fn kept(settings: &Settings, folder: &Path, options: StackOptions) -> anyhow::Result<Self> {
        let stack = Stack::start(folder, options).await?;
        Self::over(stack, settings).await
    }

    /// Uses the servers that the configuration names, as they are.
    pub fn running(settings: &Settings) -> Self {
        Self { settings: settings.clone(), stack: None }
    }

    async fn over(stack: Stack, settings: &Settings) -> anyhow::Result<Self> {
        let mut settings = settings.clone();
        settings.nats.url = stack.nats.url().to_owned();
        settings.nats.credentials_file = None;
        settings.postgres.url = stack.postgres.url("memfleet");
        set_up(&settings).await?;
        Ok(Self { settings, stack: Some(stack) })
    }

    /// The private servers, if they are private.
    pub fn stack(&self) -> Option<&Stack> {
        self.stack.as_ref()
    }

    /// Stops the servers if they are private.
    ///
    /// # Errors
    /// If one does not stop.
    pub async fn stop(self) -> anyhow::Result<()> {
        match self.stack {
            Some(stack) => stack.stop().await.context("the private servers did not stop as they should"),
            None => Ok(()),
        }
    }
}

/// Migrates the database and applies streams and consumers.
///
/// # Errors
/// If the database or the broker cannot be reached or refuses.
pub async fn set_up(settings: &Settings) -> anyhow::Result<()> {
    let url = &settings.postgres.url;
    store::migration::up(store::connect(url).await?).await?;
    // A folder that stays may have been made months ago.
    store::partition::make_ahead(&mut store::connect(url).await?, store::partition::MONTHS_AHEAD).await?;
    let client = broker::connect(&settings.nats, "provision").await?;
    let jetstream = async_nats::jetstream::new(client);
    topology::apply(&jetstream, &topology::Topology::shipped()?).await?;
    Ok(())
}
