//! The owner of a collection: the deployment, that is the database, whose rows name its points.
//!
//! It is recorded as an alias of the collection, `<collection>__owner__<deployment>`, which every version of Qdrant keeps
//! and which goes with the collection. Two deployments with the same alias on one server would otherwise write into one
//! collection, and each would take the other's points for orphans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qdrant_client::qdrant::CreateAliasBuilder;
use uuid::Uuid;

use crate::error::VectorError;
use crate::store::VectorStore;

/// How long a check of an owner counts.
const CHECK_LIFETIME: Duration = Duration::from_secs(5);
/// The maximum number of checks that are remembered.
const MAX_CHECKS: usize = 100;

/// Whose a collection is, of those who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This deployment.
    Us,
    /// No owner is recorded: the collection is missing, or it was created by an earlier version.
    Nobody,
}

/// The checks of a process, by collection and deployment.
pub(crate) type Checks = Arc<Mutex<HashMap<(String, Uuid), (Owner, Instant)>>>;

fn prefix(collection: &str) -> String {
    format!("{collection}__owner__")
}

fn name(collection: &str, deployment: Uuid) -> String {
    format!("{}{}", prefix(collection), deployment.simple())
}

impl VectorStore {
    /// The owners of a collection. More than one only for the moment in which two deployments claim it.
    async fn owners(&self, collection: &str) -> Result<Vec<Uuid>, VectorError> {
        let aliases = match self.client.list_collection_aliases(collection).await.map_err(VectorError::from) {
            Ok(listed) => listed.aliases,
            Err(VectorError::NoCollection(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let prefix = prefix(collection);
        Ok(aliases.iter().filter_map(|one| one.alias_name.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// Checks that a collection belongs to a deployment or to nobody.
    ///
    /// # Errors
    /// [`VectorError::Foreign`], and those of the call.
    pub async fn owner(&self, collection: &str, deployment: Uuid) -> Result<Owner, VectorError> {
        let owners = self.owners(collection).await?;
        match owners.iter().find(|&&owner| owner != deployment) {
            Some(&owner) => Err(foreign(collection, owner, deployment)),
            None if owners.is_empty() => Ok(Owner::Nobody),
            None => Ok(Owner::Us),
        }
    }

    /// As [`owner`](Self::owner), with an answer that is at most 5 seconds old. For every batch and every search.
    ///
    /// # Errors
    /// As [`owner`](Self::owner).
    pub async fn recent_owner(&self, collection: &str, deployment: Uuid) -> Result<Owner, VectorError> {
        let key = (collection.to_owned(), deployment);
        let known = {
            let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
            checks.get(&key).filter(|(_, since)| since.elapsed() < CHECK_LIFETIME).map(|(owner, _)| *owner)
        };
        if let Some(owner) = known {
            return Ok(owner);
        }
        let owner = self.owner(collection, deployment).await?;
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.len() >= MAX_CHECKS {
            checks.clear();
        }
        checks.insert(key, (owner, Instant::now()));
        Ok(owner)
    }

    /// Records a deployment as the owner of a collection that belongs to nobody; with `take_over`, also of another
    /// deployment's. Of two deployments that claim a collection at once, at most one succeeds.
    ///
    /// # Errors
    /// [`VectorError::Foreign`], and those of the calls.
    pub async fn claim(
        &self,
        collection: &str,
        deployment: Uuid,
        take_over: bool,
    ) -> Result<(), VectorError> {
        let owners = self.owners(collection).await?;
        let others = || owners.iter().copied().filter(|&owner| owner != deployment);
        if let Some(owner) = others().next().filter(|_| !take_over) {
            return Err(foreign(collection, owner, deployment));
        }
        for owner in others() {
            self.client.delete_alias(name(collection, owner).as_str()).await?;
        }
        let own = name(collection, deployment);
        if !owners.contains(&deployment) {
            self.client.create_alias(CreateAliasBuilder::new(collection, own.as_str())).await?;
        }
        let now = self.owners(collection).await?;
        match now.iter().find(|&&owner| owner != deployment) {
            None => Ok(()),
            Some(&owner) => {
                self.client.delete_alias(own.as_str()).await?;
                Err(foreign(collection, owner, deployment))
            }
        }
    }
}

fn foreign(collection: &str, owner: Uuid, deployment: Uuid) -> VectorError {
    VectorError::Foreign { collection: collection.to_owned(), owner, deployment }
}
