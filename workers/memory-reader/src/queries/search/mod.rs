//! `search.similar`: memories similar to a text or a vector.
//!
//! It takes two transactions with a vector search between them. The first one reads where the service may search; the
//! vector store is queried outside of any transaction; the second one searches by full text, ranks and reads the
//! memories. A result of the vector store counts only as far as the user's own rows confirm it.

mod ranking;

use chrono::{DateTime, Utc};
use contract::{
    Malformed, QueryErrorCode, SearchAnswer, SearchMode, SearchSimilar, Text as BoundedText, UserId,
    VectorType,
};
use runtime::query::QueryRefusal;
use store::security::PlanCacheMode;
use store::vector::{self, Collection};
use store::{Connection, Fault};
use tokio::time::timeout;
use vectors::{ScoredMemory, Tenant, VectorQuery};

use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};
use crate::vector_search;

const TABLE: &str = "unified_memory_vectors";

/// The maximum number of points of a vector search. A memory with text before it has two.
const MAX_POINTS: u64 = 200;

#[derive(Debug)]
pub(crate) struct Search {
    query: SearchSimilar,
}

/// Where a search of the service for the user searches.
#[derive(Debug)]
struct SearchScope {
    /// The tenant of the user in the vector store. `None` for a user without an account.
    tenant: Option<Tenant>,
    /// The types of memories to search.
    types: Vec<VectorType>,
    /// The types that the service may search. Memories of other types must not influence the ranking.
    permitted: Vec<VectorType>,
    /// The active collection. `None` before one is created.
    collection: Option<Collection>,
}

/// What the vector store found, and where.
#[derive(Debug)]
struct VectorMatches {
    collection: Collection,
    memories: Vec<ScoredMemory>,
}

impl ValidatedQuery for Search {
    type Query = SearchSimilar;

    fn validate(query: SearchSimilar) -> Result<Self, Malformed> {
        if query.text.as_ref().is_some_and(|text| text.as_str().trim().is_empty()) {
            return Err(Malformed::new("text", "contains only white space"));
        }
        if query.text.is_none() && (query.embedding.is_none() || query.mode == SearchMode::Fulltext) {
            return Err(Malformed::new("text", "is required without an embedding and in the mode fulltext"));
        }
        let metadata: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(query.metadata.as_str()).unwrap_or_default();
        if metadata.len() > 16
            || metadata.values().any(|value| value.is_null() || value.is_array() || value.is_object())
        {
            return Err(Malformed::new("metadata", "may have at most 16 strings, numbers or booleans"));
        }
        if let (Some(since), Some(until)) = (query.since, query.until)
            && since >= until
        {
            return Err(Malformed::new("until", "must be later than since"));
        }
        Ok(Self { query })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<SearchAnswer>, QueryFailure> {
        let (user, service, alias) = (context.user, context.service, context.vector_search.alias());
        let scope = context
            .read(PlanCacheMode::ForceGenericPlan, async |connection| {
                self.scope(connection, alias, service.as_str(), user).await
            })
            .await?;
        if scope.types.is_empty() {
            let message = "the service may not search memories of these types";
            return Err(QueryRefusal::new(QueryErrorCode::Denied, message, Some("vector_types")).into());
        }
        let matches =
            if self.uses_vectors() { Some(self.search_vectors(context, &scope).await?) } else { None };
        let memories = matches.as_ref().map_or(&[][..], |matches| &matches.memories);
        let hits = context
            .read(self.plan_cache_mode(), async |connection| {
                self.hits(connection, user, &scope, memories).await
            })
            .await?;
        let read = hits.len();
        let Some(VectorMatches { collection, memories }) = matches else {
            return Ok(Answered::new(SearchAnswer { hits, model: None }, TABLE, read));
        };
        let answer = SearchAnswer { hits, model: Some(collection.model) };
        Ok(Answered::new(answer, TABLE, read).and_searched(collection.collection_name, memories.len()))
    }
}

impl Search {
    /// Whether vectors count in the ranking.
    fn uses_vectors(&self) -> bool {
        self.query.mode != SearchMode::Fulltext
    }

    /// The text, if full text counts in the ranking.
    fn words(&self) -> Option<&str> {
        let text = self.query.text.as_ref().map(BoundedText::as_str);
        text.filter(|_| self.query.mode != SearchMode::Vector)
    }

    /// Whether the answer is ordered by vector similarity only.
    fn is_ranked_by_vectors_only(&self) -> bool {
        let SearchSimilar { recency_boost, consensus_boost, .. } = &self.query;
        self.words().is_none() && recency_boost.get() == 0.0 && consensus_boost.get() == 0.0
    }

    /// Planning the statements takes longer than running them, and their best plan does not depend on the values;
    /// except for full text in one session, which has an index of its own.
    fn plan_cache_mode(&self) -> PlanCacheMode {
        let is_indexed = self.words().is_some() && self.query.session_id.is_some();
        if is_indexed { PlanCacheMode::Auto } else { PlanCacheMode::ForceGenericPlan }
    }

    fn limit(&self) -> usize {
        usize::try_from(self.query.limit.get()).unwrap_or(0)
    }

    /// The first transaction.
    async fn scope(
        &self,
        connection: &mut Connection,
        alias: &str,
        service: &str,
        user: UserId,
    ) -> Result<SearchScope, Fault> {
        let scope = vector::search_scope(connection, vectors::ALIAS, alias, service, user.get()).await?;
        let wanted = self.query.vector_types.as_slice();
        let permitted: Vec<VectorType> = VectorType::ALL
            .iter()
            .copied()
            .filter(|one| scope.may_search.iter().any(|permitted| permitted == one.as_str()))
            .collect();
        let types =
            permitted.iter().copied().filter(|one| wanted.is_empty() || wanted.contains(one)).collect();
        let tenant = scope.tenant.map(|one| Tenant::new(one.tenant, one.filter_key));
        Ok(SearchScope { tenant, types, permitted, collection: scope.active })
    }

    /// The vector search between the transactions.
    async fn search_vectors(
        &self,
        context: &QueryContext<'_>,
        scope: &SearchScope,
    ) -> Result<VectorMatches, QueryRefusal> {
        let late =
            |_| QueryRefusal::new(QueryErrorCode::Deadline, "the vector search exceeded the deadline", None);
        timeout(context.deadline.remaining(), self.find_vectors(context, scope)).await.map_err(late)?
    }

    async fn find_vectors(
        &self,
        context: &QueryContext<'_>,
        scope: &SearchScope,
    ) -> Result<VectorMatches, QueryRefusal> {
        let store = context.vector_search.store()?;
        let Some(collection) = scope.collection.clone() else {
            return Err(vector_search::unavailable("there is no collection of vectors yet"));
        };
        let vector = match (self.embedding(&collection)?, &self.query.text) {
            (Some(vector), _) => Some(vector),
            (None, Some(text)) => {
                let limit = context.deadline.remaining();
                Some(context.vector_search.embed(&collection.model, text.as_str(), limit).await?)
            }
            (None, None) => None,
        };
        // A user without an account has no memories.
        let memories = match (&scope.tenant, vector) {
            (Some(tenant), Some(vector)) => {
                let query = self.vector_query(tenant, &scope.types, vector);
                vector_search::search(store, tenant, &collection, &query).await?
            }
            (None, _) | (_, None) => Vec::new(),
        };
        Ok(VectorMatches { collection, memories })
    }

    /// The embedding of the query, if it has one that fits the collection.
    fn embedding(&self, collection: &Collection) -> Result<Option<Vec<f32>>, Malformed> {
        let Some(embedding) = &self.query.embedding else { return Ok(None) };
        if embedding.model.as_str() != collection.model {
            let problem =
                format!("is {}, but the collection has vectors of {}", embedding.model, collection.model);
            return Err(Malformed::new("embedding.model", problem));
        }
        let length = embedding.vector.as_slice().len();
        if usize::try_from(collection.dimension).ok() != Some(length) {
            let problem = format!("has {length} dimensions, but the collection has {}", collection.dimension);
            return Err(Malformed::new("embedding.vector", problem));
        }
        Ok(Some(embedding.vector.normalized()))
    }

    fn vector_query(&self, tenant: &Tenant, types: &[VectorType], vector: Vec<f32>) -> VectorQuery {
        let millis = |time: Option<DateTime<Utc>>| time.map(|time| time.timestamp_millis());
        VectorQuery {
            vector,
            vector_types: types.to_vec(),
            session: self.query.session_id.clone(),
            time: millis(self.query.since)..millis(self.query.until),
            meta: vectors::metadata_digests(tenant, self.query.metadata.as_str()),
            exact: self.query.exact,
            limit: MAX_POINTS,
            enough: self.is_ranked_by_vectors_only().then(|| self.limit()),
        }
    }
}
