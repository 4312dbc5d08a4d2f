//! The vector store, between the two transactions of a search.

use std::time::Duration;

use config::Settings;
use contract::QueryErrorCode;
use embed::EmbedError;
use runtime::query::QueryRefusal;
use tokio::time::timeout;
use vectors::{Embedders, VectorError, VectorStore};

use crate::answer::search::{self, Search};
use crate::answer::{Found, Wanted};

/// Makes vectors of queries and looks for those of memories.
#[derive(Debug)]
pub(crate) struct Searcher {
    vectors: Option<VectorStore>,
    embedders: Embedders,
}

impl Searcher {
    /// Opens what is configured. Without a vector store, searches by words alone are answered.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, String> {
        let vectors = VectorStore::open(&settings.vectors).map_err(|error| error.to_string())?;
        let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await;
        Ok(Self { vectors, embedders: embedders.map_err(|error| error.to_string())? })
    }

    /// Looks for what a search wants, where the database said it may look.
    ///
    /// # Errors
    /// [`QueryRefusal`].
    pub(crate) async fn look(
        &self,
        wanted: Wanted,
        found: Found,
        within: Duration,
    ) -> Result<Wanted, QueryRefusal> {
        let (Wanted::Ground(mut search), Some(ground)) = (wanted, found.into_ground()) else {
            return Err(QueryRefusal::told(QueryErrorCode::Failed, "the search cannot be answered", None));
        };
        if ground.types.is_empty() {
            return Err(QueryRefusal::told(
                QueryErrorCode::Denied,
                "the service may not search memories of these types",
                Some("vector_types"),
            ));
        }
        (search.types, search.permitted) = (ground.types, ground.permitted);
        if search.by_vectors() {
            search.collection = ground.collection;
            let looking = self.probe(&mut search, ground.tenant);
            timeout(within, looking).await.map_err(|_| {
                QueryRefusal::told(QueryErrorCode::Deadline, "the vectors were not compared in time", None)
            })??;
        }
        Ok(Wanted::Search(search))
    }

    async fn probe(&self, search: &mut Search, tenant: Option<vectors::Tenant>) -> Result<(), QueryRefusal> {
        let unavailable =
            |what: &str| QueryRefusal::unavailable(&format!("{what}; ask again, or in the mode fulltext"));
        let vectors = self.vectors.as_ref().ok_or_else(|| unavailable("there is no vector store"))?;
        let Some(collection) = search.collection.clone() else {
            return Err(unavailable("there is no collection of vectors yet"));
        };
        let vector = match (search::brought(search, &collection)?, search::text(search)) {
            (Some(vector), _) => vector,
            (None, Some(text)) => self.embed(&collection.model, text).await?,
            (None, None) => return Ok(()),
        };
        // A user without an account has no memories.
        let Some(tenant) = tenant else { return Ok(()) };
        let query = search.query(&tenant, vector);
        search.by_meaning = vectors.search(&tenant, &collection.collection_name, &query).await.map_err(
            |error| match error {
                VectorError::Unavailable(_) | VectorError::NoCollection(_) => {
                    tracing::warn!(worker = crate::NAME, %error, "a search cannot be answered");
                    unavailable("the vector store cannot be reached")
                }
                VectorError::Refused(_) => {
                    tracing::error!(worker = crate::NAME, %error, "a search cannot be answered");
                    QueryRefusal::told(QueryErrorCode::Failed, "the search cannot be answered", None)
                }
            },
        )?;
        Ok(())
    }

    async fn embed(&self, model: &str, text: &str) -> Result<Vec<f32>, QueryRefusal> {
        let Some(embedder) = self.embedders.of(model) else {
            let message = format!("embedding: is needed, since nobody here makes vectors of {model}");
            return Err(QueryRefusal::told(QueryErrorCode::Malformed, &message, Some("embedding")));
        };
        let made = embedder.embed(vec![text.to_owned()]).await.map_err(|error| match error {
            EmbedError::Unavailable(_) | EmbedError::Misconfigured(_) => {
                tracing::warn!(worker = crate::NAME, %error, "a query cannot be embedded");
                QueryRefusal::unavailable(
                    "the embedder cannot be reached; ask again, or in the mode fulltext",
                )
            }
            EmbedError::Refused(_) => {
                QueryRefusal::told(QueryErrorCode::Malformed, "text: the embedder refuses it", Some("text"))
            }
        })?;
        made.into_iter()
            .next()
            .ok_or_else(|| QueryRefusal::told(QueryErrorCode::Failed, "there is no vector", None))
    }
}
