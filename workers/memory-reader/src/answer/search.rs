//! Memories that are like a text or a vector.
//!
//! In two transactions, with the vector store asked between them: the first one says how the user is called there, where to look,
//! and what the service may find; the second one finds by words, puts both together and reads the memories. What the vector store
//! says counts only as far as the user's own rows say the same.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use contract::{
    Malformed, ScoreParts, SearchAnswer, SearchHit, SearchMode, SearchSimilar, Text as BoundedText, UserId,
    VectorType,
};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::security::Plans;
use store::vector::{self, Collection};
use store::{Connection, Fault};
use uuid::Uuid;
use vectors::{ScoredMemory, Tenant, VectorQuery};

use super::{Answer, json, label};
use crate::page;

pub(crate) const TABLE: &str = "unified_memory_vectors";

/// How many memories each of the two ways finds before they are put together.
const DEPTH: i64 = 100;
/// How many points that is at most: a memory with what was said before it has two.
const POINTS: u64 = 200;
/// Reciprocal rank fusion: a place counts 1 / (K + place), and among the vectors half as much (docs/adr/0025).
const K: f64 = 10.0;
const WEIGHT_OF_VECTORS: f64 = 0.5;

/// A search whose bounds have been checked.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) asked: SearchSimilar,
    /// What the service may find.
    pub(crate) types: Vec<VectorType>,
    /// What it could find if it asked: what it may not find must not show in what it does.
    pub(crate) permitted: Vec<VectorType>,
    /// What the vectors have found.
    pub(crate) by_meaning: Vec<ScoredMemory>,
    /// The collection that was searched; none where words alone count.
    pub(crate) collection: Option<Collection>,
    service: String,
}

/// Where to look, and as whom.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) tenant: Option<Tenant>,
    pub(crate) types: Vec<VectorType>,
    pub(crate) permitted: Vec<VectorType>,
    pub(crate) collection: Option<Collection>,
}

impl Search {
    pub(crate) fn new(asked: SearchSimilar, service: &str) -> Result<Self, Malformed> {
        if asked.text.as_ref().is_some_and(|text| text.as_str().trim().is_empty()) {
            return Err(Malformed::new("text", "holds nothing but white space"));
        }
        if asked.text.is_none() && (asked.embedding.is_none() || asked.mode == SearchMode::Fulltext) {
            return Err(Malformed::new("text", "is needed, or an embedding and another mode than fulltext"));
        }
        let metadata: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(asked.metadata.as_str()).unwrap_or_default();
        if metadata.len() > 16
            || metadata.values().any(|value| value.is_null() || value.is_array() || value.is_object())
        {
            return Err(Malformed::new("metadata", "may hold at most 16 texts, numbers or booleans"));
        }
        if let (Some(since), Some(until)) = (asked.since, asked.until)
            && since >= until
        {
            return Err(Malformed::new("until", "must be later than since"));
        }
        Ok(Self {
            asked,
            types: Vec::new(),
            permitted: Vec::new(),
            by_meaning: Vec::new(),
            collection: None,
            service: service.to_owned(),
        })
    }

    /// Whether vectors count.
    pub(crate) fn by_vectors(&self) -> bool {
        self.asked.mode != SearchMode::Fulltext
    }

    /// Whether the order of the vectors is that of the answer: nothing else counts.
    fn is_by_vectors_alone(&self) -> bool {
        let SearchSimilar { text, mode, recency_boost, consensus_boost, .. } = &self.asked;
        (text.is_none() || *mode == SearchMode::Vector)
            && recency_boost.get() == 0.0
            && consensus_boost.get() == 0.0
    }

    /// The statements are planned for longer than they run and take the same way whatever the values are, but for words in one
    /// session, which have an index of their own.
    pub(super) fn plans(&self) -> Plans {
        let SearchSimilar { text, mode, session_id, .. } = &self.asked;
        let by_words = text.is_some() && *mode != SearchMode::Vector;
        if by_words && session_id.is_some() { Plans::AsItSeesFit } else { Plans::Generic }
    }

    fn limit(&self) -> usize {
        usize::try_from(self.asked.limit.get()).unwrap_or(0)
    }

    /// What the vector store is asked, for the vector of the query.
    pub(crate) fn query(&self, tenant: &Tenant, vector: Vec<f32>) -> VectorQuery {
        let millis = |time: Option<DateTime<Utc>>| time.map(|time| time.timestamp_millis());
        VectorQuery {
            vector,
            vector_types: self.types.clone(),
            session: self.asked.session_id.clone(),
            time: millis(self.asked.since)..millis(self.asked.until),
            meta: vectors::metadata_digests(tenant, self.asked.metadata.as_str()),
            exact: self.asked.exact,
            limit: POINTS,
            enough: self.is_by_vectors_alone().then(|| self.limit()),
        }
    }
}

/// The first transaction.
pub(crate) async fn ground(
    connection: &mut Connection,
    user: UserId,
    search: &Search,
) -> Result<Answer, Fault> {
    let ground = vector::ground(connection, vectors::ALIAS, &search.service, user.get()).await?;
    let wanted = search.asked.vector_types.as_slice();
    let permitted: Vec<VectorType> = VectorType::ALL
        .iter()
        .copied()
        .filter(|one| ground.may_search.iter().any(|permitted| permitted == one.as_str()))
        .collect();
    let types = permitted.iter().copied().filter(|one| wanted.is_empty() || wanted.contains(one)).collect();
    Ok(Answer::Ground(Ground {
        tenant: ground.tenant.map(|one| Tenant::new(one.tenant, one.filter_key)),
        types,
        permitted,
        collection: ground.active,
    }))
}

/// BM25 over the user's memories, in which a word counts half in the turns beside the one that says it, and a quarter in those
/// beside them: a conversation answers in the next sentence (docs/adr/0025). The filters leave the statistics as they are.
///
/// Nobody has counted the rows of these steps when the plan is made, and a nested loop over two of them takes time by the square of
/// the memories. So the rows carry along all that is asked of them, and the one join of two steps that is left is a full one, which is a hash or a merge join
/// in every plan; what it has too much is without a lexeme or an id, and ends there.
const BY_WORDS: &str = "
    WITH query AS MATERIALIZED (
        SELECT lexeme FROM unnest(memory_words($2))
    ), anywhere AS MATERIALIZED (
        SELECT replace(plainto_tsquery('pg_catalog.english', $2)::text, ' & ', ' | ')::tsquery AS words
    ), memories AS MATERIALIZED (
        SELECT m.id, coalesce(m.session_id, m.id::text) AS talk, m.content_length AS length, m.content_words AS words,
            row_number() OVER (PARTITION BY coalesce(m.session_id, m.id::text) ORDER BY m.occurred_at, m.created_at, m.id) AS place,
            m.vector_type::text = ANY ($3) AND ($5 IS NULL OR m.occurred_at >= $5) AND ($6 IS NULL OR m.occurred_at < $6)
                AND m.metadata @> $7::jsonb AS is_wanted
        FROM unified_memory_vectors m WHERE m.user_id = $1 AND m.removed_at IS NULL AND m.vector_type::text = ANY ($9)
            AND ($4 IS NULL OR m.session_id = $4)
    ), in_context AS MATERIALIZED (
        SELECT id, talk, place, words, is_wanted, length
            + 0.5 * (coalesce(lag(length, 1) OVER w, 0) + coalesce(lead(length, 1) OVER w, 0))
            + 0.25 * (coalesce(lag(length, 2) OVER w, 0) + coalesce(lead(length, 2) OVER w, 0)) AS length
        FROM memories WINDOW w AS (PARTITION BY talk ORDER BY place)
    ), overall AS MATERIALIZED (
        SELECT count(*)::float8 AS memories, greatest(avg(length)::float8, 1) AS length FROM in_context
    ), said AS MATERIALIZED (
        SELECT c.talk, c.place, l.lexeme, cardinality(l.positions) AS times
        FROM in_context c, LATERAL unnest(c.words) AS l
        WHERE c.words @@ (SELECT words FROM anywhere) AND l.lexeme IN (SELECT lexeme FROM query)
    ), rare AS (
        SELECT s.lexeme, ln(1 + (o.memories - count(*) + 0.5) / (count(*) + 0.5)) AS weight
        FROM said s, overall o GROUP BY s.lexeme, o.memories
    ), spread AS (
        SELECT s.talk, s.place + near.distance AS place, s.lexeme, sum(near.weight * s.times)::float8 AS times
        FROM said s CROSS JOIN (VALUES (0, 1.0), (-1, 0.5), (1, 0.5), (-2, 0.25), (2, 0.25)) AS near (distance, weight)
        GROUP BY s.talk, s.place + near.distance, s.lexeme
    ), heard AS MATERIALIZED (
        SELECT c.id, c.length, c.is_wanted, s.lexeme, s.times FROM spread s FULL JOIN in_context c USING (talk, place)
    ), scored AS (
        SELECT h.id, sum(r.weight * h.times * 2.2 / (h.times + 1.2 * (0.25 + 0.75 * h.length::float8 / o.length)))::float8 AS score
        FROM heard h JOIN rare r USING (lexeme), overall o WHERE h.is_wanted GROUP BY h.id
    )
    SELECT id, score FROM scored ORDER BY score DESC, id LIMIT $8";

#[derive(QueryableByName)]
struct ByWords {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Double)]
    score: f64,
}

/// What ranking needs of a memory; of its node only where that counts. The same filters as the vector store's: what that says may be
/// older than the row.
const RANKED: &str = "
    SELECT m.id, m.occurred_at, CASE WHEN $8 THEN coalesce((
        SELECT CASE n.validation_status WHEN 'validated' THEN n.consensus_score WHEN 'pending' THEN 0.5 * n.consensus_score END
        FROM consensus_memory_nodes n WHERE n.user_id = m.user_id AND n.id = m.memory_node_id), 0) ELSE 0 END AS agreement
    FROM unified_memory_vectors m
    WHERE m.user_id = $1 AND m.id = ANY ($2) AND m.removed_at IS NULL AND m.vector_type::text = ANY ($3)
        AND ($4 IS NULL OR m.session_id = $4) AND ($5 IS NULL OR m.occurred_at >= $5) AND ($6 IS NULL OR m.occurred_at < $6)
        AND m.metadata @> $7::jsonb";

#[derive(QueryableByName)]
struct Ranked {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    occurred_at: DateTime<Utc>,
    #[diesel(sql_type = Double)]
    agreement: f64,
}

const READ: &str = "
    WITH page AS (
        SELECT m.*, i.place, sum(octet_length(m.content_text) + octet_length(m.metadata::text)) OVER (ORDER BY i.place) AS bytes
        FROM unnest($2::uuid[]) WITH ORDINALITY AS i (id, place)
        JOIN unified_memory_vectors m ON m.user_id = $1 AND m.id = i.id
    )
    SELECT id, memory_node_id, session_id, vector_type::text AS vector_type, speaker, content_text, metadata::text AS metadata,
        occurred_at, removed_at IS NOT NULL AS is_removed
    FROM page WHERE place = 1 OR bytes <= $3 ORDER BY place";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    memory_node_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    session_id: Option<String>,
    #[diesel(sql_type = Text)]
    vector_type: String,
    #[diesel(sql_type = Nullable<Text>)]
    speaker: Option<String>,
    #[diesel(sql_type = Text)]
    content_text: String,
    #[diesel(sql_type = Text)]
    metadata: String,
    #[diesel(sql_type = Timestamptz)]
    occurred_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    is_removed: bool,
}

/// The second transaction.
pub(crate) async fn similar(
    connection: &mut Connection,
    user: UserId,
    search: &Search,
) -> Result<Answer, Fault> {
    let by_words = match &search.asked.text {
        Some(text) if search.asked.mode != SearchMode::Vector => {
            by_words(connection, user, search, text.as_str()).await?
        }
        Some(_) | None => Vec::new(),
    };
    let ranked = ranked(connection, user, search, &by_words).await?;
    let scored = fuse(search, &by_words, &ranked, Utc::now());
    let ids: Vec<Uuid> = scored.iter().map(|(id, _, _)| *id).collect();
    let query = diesel::sql_query(READ)
        .bind::<Integer, _>(user.get())
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<BigInt, _>(page::PAGE_BYTES);
    let rows: Vec<Row> = store::prepared(query).load(connection).await?;
    let scores: HashMap<Uuid, (f64, ScoreParts)> =
        scored.into_iter().map(|(id, score, parts)| (id, (score, parts))).collect();
    let hit = |row: Row| {
        let (score, parts) = scores.get(&row.id).copied().unwrap_or_default();
        let node = row.memory_node_id.filter(|_| !row.is_removed)?;
        Some(hit(row, node, score, parts))
    };
    let hits = rows.into_iter().filter_map(hit).collect::<Result<_, Fault>>()?;
    let model = search.collection.as_ref().map(|collection| collection.model.clone());
    Ok(Answer::Search(SearchAnswer { hits, model }))
}

fn hit(row: Row, memory_node_id: Uuid, score: f64, parts: ScoreParts) -> Result<SearchHit, Fault> {
    Ok(SearchHit {
        memory_id: row.id,
        memory_node_id,
        session_id: row.session_id,
        vector_type: label(&row.vector_type)?,
        speaker: row.speaker,
        content_text: row.content_text,
        metadata: json(row.metadata)?,
        occurred_at: row.occurred_at,
        score,
        parts,
    })
}

async fn by_words(
    connection: &mut Connection,
    user: UserId,
    search: &Search,
    text: &str,
) -> Result<Vec<ByWords>, Fault> {
    let query = diesel::sql_query(BY_WORDS)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(text)
        .bind::<Array<Text>, _>(search.types.iter().map(|one| one.as_str()).collect::<Vec<_>>())
        .bind::<Nullable<Text>, _>(search.asked.session_id.as_ref().map(contract::SessionId::as_str))
        .bind::<Nullable<Timestamptz>, _>(search.asked.since)
        .bind::<Nullable<Timestamptz>, _>(search.asked.until)
        .bind::<Text, _>(search.asked.metadata.as_str())
        .bind::<BigInt, _>(DEPTH)
        .bind::<Array<Text>, _>(search.permitted.iter().map(|one| one.as_str()).collect::<Vec<_>>());
    Ok(store::prepared(query).load(connection).await?)
}

/// What ranking needs of the memories that were found. Where the order of the vectors is that of the answer, no further than the
/// answer goes: each row is somewhere else on the disk.
async fn ranked(
    connection: &mut Connection,
    user: UserId,
    search: &Search,
    by_words: &[ByWords],
) -> Result<HashMap<Uuid, Ranked>, Fault> {
    let mut seen = HashSet::new();
    let found = by_words.iter().map(|one| one.id).chain(search.by_meaning.iter().map(|one| one.memory));
    let ids: Vec<Uuid> = found.filter(|id| seen.insert(*id)).collect();
    let enough = if search.is_by_vectors_alone() { search.limit() } else { ids.len() };
    let mut ranked = HashMap::with_capacity(enough);
    for some in ids.chunks(enough.max(1)) {
        let query = diesel::sql_query(RANKED)
            .bind::<Integer, _>(user.get())
            .bind::<Array<SqlUuid>, _>(some)
            .bind::<Array<Text>, _>(search.types.iter().map(|one| one.as_str()).collect::<Vec<_>>())
            .bind::<Nullable<Text>, _>(search.asked.session_id.as_ref().map(contract::SessionId::as_str))
            .bind::<Nullable<Timestamptz>, _>(search.asked.since)
            .bind::<Nullable<Timestamptz>, _>(search.asked.until)
            .bind::<Text, _>(search.asked.metadata.as_str())
            .bind::<Bool, _>(search.asked.consensus_boost.get() > 0.0);
        let rows: Vec<Ranked> = store::prepared(query).load(connection).await?;
        ranked.extend(rows.into_iter().map(|row| (row.id, row)));
        if ranked.len() >= enough {
            break;
        }
    }
    Ok(ranked)
}

/// Puts both ways together, the best memories first, as many as were asked for.
fn fuse(
    search: &Search,
    by_words: &[ByWords],
    ranked: &HashMap<Uuid, Ranked>,
    now: DateTime<Utc>,
) -> Vec<(Uuid, f64, ScoreParts)> {
    let mut parts: HashMap<Uuid, ScoreParts> = HashMap::new();
    let mut rank = 0;
    for found in search.by_meaning.iter().filter(|found| ranked.contains_key(&found.memory)) {
        rank += 1;
        let part = parts.entry(found.memory).or_default();
        (part.cosine, part.vector_rank) = (Some(f64::from(found.cosine)), Some(rank));
        part.fused += WEIGHT_OF_VECTORS / (K + f64::from(rank));
    }
    let mut rank = 0;
    for one in by_words.iter().filter(|one| ranked.contains_key(&one.id)) {
        rank += 1;
        let part = parts.entry(one.id).or_default();
        (part.fulltext, part.fulltext_rank) = (Some(one.score), Some(rank));
        part.fused += 1.0 / (K + f64::from(rank));
    }
    #[allow(clippy::cast_precision_loss, reason = "hours, at most ten years")]
    let half_life_s = search.asked.recency_half_life_hours.get() as f64 * 3_600.0;
    let mut scored: Vec<(Uuid, f64, ScoreParts)> = parts
        .into_iter()
        .filter_map(|(id, mut part)| {
            let row = ranked.get(&id)?;
            #[allow(clippy::cast_precision_loss, reason = "seconds, which are few enough")]
            let age_s = (now - row.occurred_at).num_seconds().max(0) as f64;
            part.recency = 1.0 + search.asked.recency_boost.get() * (-age_s / half_life_s).exp2();
            part.consensus = 1.0 + search.asked.consensus_boost.get() * row.agreement;
            Some((id, part.fused * part.recency * part.consensus, part))
        })
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(search.limit());
    scored
}

/// The vector of the query, if it brings one that fits the collection.
pub(crate) fn brought(search: &Search, collection: &Collection) -> Result<Option<Vec<f32>>, Malformed> {
    let Some(embedding) = &search.asked.embedding else { return Ok(None) };
    if embedding.model.as_str() != collection.model {
        let problem = format!("is {}, and the collection is for {}", embedding.model, collection.model);
        return Err(Malformed::new("embedding.model", problem));
    }
    let length = embedding.vector.as_slice().len();
    if usize::try_from(collection.dimension).ok() != Some(length) {
        let problem = format!("has {length} numbers, and the collection is for {}", collection.dimension);
        return Err(Malformed::new("embedding.vector", problem));
    }
    Ok(Some(embedding.vector.normalized()))
}

/// The text of the query.
pub(crate) fn text(search: &Search) -> Option<&str> {
    search.asked.text.as_ref().map(BoundedText::as_str)
}
