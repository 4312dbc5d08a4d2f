//! Connections to the database.

use std::time::Duration;

use diesel_async::pooled_connection::deadpool::{self, Object};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, PoolError as ManagerError, RecyclingMethod,
};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use crate::fault::{Fault, FaultKind};

/// Connections to one database under one role.
pub type Pool = deadpool::Pool<AsyncPgConnection>;

/// A connection lent by a [`Pool`]; dropped, it goes back.
pub type Pooled = Object<AsyncPgConnection>;

/// No pool, or no connection out of it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool cannot be made as asked for.
    #[error("the PostgreSQL pool cannot be made: {0}")]
    Build(String),
    /// The server cannot be reached, or refuses us.
    #[error("PostgreSQL cannot be reached: {0}")]
    Connect(String),
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        Self { kind: FaultKind::Unavailable, reason: error.to_string() }
    }
}

/// Makes a pool of at most `size` connections. It connects when a connection is first asked for; whoever asks
/// waits at most `patience`.
///
/// # Errors
/// [`PoolError::Build`] if the pool cannot be made.
pub fn open_pool(url: &str, size: usize, patience: Duration) -> Result<Pool, PoolError> {
    let mut config = ManagerConfig::default();
    // A connection that died unnoticed fails the transaction, which is then tried on another one; asking each
    // time would cost every batch a round trip.
    config.recycling_method = RecyclingMethod::Fast;
    Pool::builder(AsyncDieselConnectionManager::new_with_config(url, config))
        .max_size(size)
        .wait_timeout(Some(patience))
        .create_timeout(Some(patience))
        .recycle_timeout(Some(patience))
        .runtime(::deadpool::Runtime::Tokio1)
        .build()
        .map_err(|error| PoolError::Build(error.to_string()))
}

/// Lends a connection.
///
/// # Errors
/// [`PoolError::Connect`] if none comes in time, with what the server or the network says.
pub async fn lend(pool: &Pool) -> Result<Pooled, PoolError> {
    pool.get().await.map_err(|error| {
        let reason = if let deadpool::PoolError::Backend(ManagerError::ConnectionError(error)) = error {
            error.to_string()
        } else {
            error.to_string()
        };
        PoolError::Connect(reason)
    })
}

/// Opens a single connection outside of any pool.
///
/// # Errors
/// [`PoolError::Connect`] with what the server or the network says.
pub async fn connect(url: &str) -> Result<AsyncPgConnection, PoolError> {
    AsyncPgConnection::establish(url).await.map_err(|error| PoolError::Connect(error.to_string()))
}
