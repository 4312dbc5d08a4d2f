//! The owner of a collection: the deployment, that is the database, whose rows name its points.
//!
//! It is recorded as an alias of the collection, `<collection>__owner__<deployment>`, which every version of Qdrant keeps
//! and which goes with the collection. Two deployments with the same alias on one server would otherwise write into one
//! collection, and each would take the other's points for orphans.

use qdrant_client::qdrant::CreateAliasBuilder;
use uuid::Uuid;

use crate::error::VectorError;
use crate::owner_cache::Owner;
use crate::store::VectorStore;

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
        if let Some(owner) = self.owner_cache.get(&key) {
            return Ok(owner);
        }
        let owner = self.owner(collection, deployment).await?;
        self.owner_cache.insert(key, owner);
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
