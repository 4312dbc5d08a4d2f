//! The vector store and the embedders, as searches use them.

use std::time::Duration;

use config::Settings;
use contract::QueryErrorCode;
use embed::EmbedError;
use runtime::query::QueryRefusal;
use store::vector::Collection;
use vectors::{Embedders, Owner, ScoredMemory, Tenant, VectorError, VectorQuery, VectorStore};

/// Embeds texts and searches a collection of vectors.
#[derive(Debug)]
pub(crate) struct VectorSearch {
    store: Option<VectorStore>,
    alias: String,
    embedders: Embedders,
}

impl VectorSearch {
    /// Opens the configured vector store and embedders. Without a vector store, only full-text searches are answered.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, String> {
        let store = VectorStore::open(&settings.vectors).map_err(|error| error.to_string())?;
        let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await;
        let alias = settings.vectors.alias.clone();
        Ok(Self { store, alias, embedders: embedders.map_err(|error| error.to_string())? })
    }

    /// The alias of the collections.
    pub(crate) fn alias(&self) -> &str {
        &self.alias
    }

    /// The configured vector store.
    ///
    /// # Errors
    /// [`QueryRefusal`] if none is configured.
    pub(crate) fn store(&self) -> Result<&VectorStore, QueryRefusal> {
        self.store.as_ref().ok_or_else(|| unavailable("no vector store is configured"))
    }

    /// Embeds a text with a model, for a query that waits no longer than `limit`.
    ///
    /// # Errors
    /// [`QueryRefusal`] if no embedder is configured for the model, if it is unreachable or if it rejects the text.
    pub(crate) async fn embed(
        &self,
        model: &str,
        text: &str,
        limit: Duration,
    ) -> Result<Vec<f32>, QueryRefusal> {
        let Some(embedder) = self.embedders.of(model) else {
            let message = format!("embedding: is required, since no embedder is configured for {model}");
            return Err(QueryRefusal::new(QueryErrorCode::Malformed, &message, Some("embedding")));
        };
        embedder.embed_within(text.to_owned(), limit).await.map_err(|error| match error {
            EmbedError::Unavailable(_) | EmbedError::Stopped(_) | EmbedError::Misconfigured(_) => {
                tracing::warn!(worker = crate::NAME, %error, "cannot embed the text of a search");
                unavailable("the embedder is unreachable")
            }
            EmbedError::Refused(_) => {
                QueryRefusal::new(QueryErrorCode::Malformed, "text: the embedder rejects it", Some("text"))
            }
        })
    }
}

/// Searches a collection for the vectors of one tenant, unless it belongs to another deployment.
///
/// # Errors
/// [`QueryRefusal`] if the vector store is unreachable or rejects the query.
pub(crate) async fn search(
    store: &VectorStore,
    tenant: &Tenant,
    collection: &Collection,
    query: &VectorQuery,
) -> Result<Vec<ScoredMemory>, QueryRefusal> {
    let found = match store.recent_owner(&collection.collection_name, collection.deployment).await {
        Ok(Owner::Us | Owner::Nobody) => store.search(tenant, &collection.collection_name, query).await,
        Err(error) => Err(error),
    };
    found.map_err(|error| match error {
        VectorError::Unavailable(_) | VectorError::NoCollection(_) => {
            tracing::warn!(worker = crate::NAME, %error, "vector search failed");
            unavailable("the vector store is unreachable")
        }
        VectorError::Foreign { .. } => {
            tracing::error!(worker = crate::NAME, %error, "vector search failed");
            unavailable("the collection of vectors belongs to another deployment")
        }
        VectorError::Refused(_) => {
            tracing::error!(worker = crate::NAME, %error, "vector search failed");
            QueryRefusal::internal()
        }
    })
}

/// What is missing, and what the sender can do.
pub(crate) fn unavailable(problem: &str) -> QueryRefusal {
    QueryRefusal::unavailable(&format!("{problem}; retry later, or use the mode fulltext"))
}
