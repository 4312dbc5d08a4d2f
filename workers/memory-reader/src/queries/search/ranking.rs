//! The second transaction of a search: full text, ranking, and the memories themselves.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use contract::{ScoreParts, SearchHit, SessionId, UserId, VectorType};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;
use vectors::ScoredMemory;

use super::{Search, SearchScope};
use crate::column::{json, label};
use crate::page::{self, fits};

/// The maximum number of memories found by full text.
const MAX_WORD_MATCHES: i64 = 100;
/// Reciprocal rank fusion: a rank scores 1 / (K + rank), and that of a vector half as much (docs/adr/0025).
const K: f64 = 10.0;
const VECTOR_WEIGHT: f64 = 0.5;

/// BM25 over the user's memories, in which a word counts half in the turns beside the one that has it, and a quarter in
/// those beside them: a conversation answers in the next sentence (docs/adr/0025). The filters do not change the
/// statistics.
///
/// The planner has no row estimates for these steps, and a nested loop over two of them takes quadratic time. So the
/// rows carry all columns that later steps need, and the only join of two steps is a full join, which is a hash or
/// merge join in every plan; its surplus rows have no lexeme or no id and are dropped by the next step.
const BY_WORDS: &str = "
    WITH query AS MATERIALIZED (
        SELECT lexeme FROM unnest(memory_words($2))
    ), anywhere AS MATERIALIZED (
        SELECT replace(plainto_tsquery('pg_catalog.english', searchable_text($2))::text, ' & ', ' | ')::tsquery AS words
    ), memories AS MATERIALIZED (
        SELECT m.id, coalesce(m.session_id, m.id::text) AS talk, m.content_length AS length, m.content_words AS words,
            row_number() OVER (PARTITION BY coalesce(m.session_id, m.id::text)
                ORDER BY m.occurred_at, m.created_at, m.stored_sequence, m.request_place, m.id) AS place,
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
struct WordMatch {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Double)]
    score: f64,
}

/// What ranking needs of a memory, and of its node if that counts. It repeats the filters of the vector search, since a
/// point may be older than the row. Knowledge counts while its node is validated and valid: its memory is removed later.
const CANDIDATES: &str = "
    SELECT m.id, m.occurred_at, CASE WHEN $8 THEN coalesce((
        SELECT CASE n.validation_status WHEN 'validated' THEN n.consensus_score WHEN 'pending' THEN 0.5 * n.consensus_score END
        FROM consensus_memory_nodes n WHERE n.user_id = m.user_id AND n.id = m.memory_node_id), 0) ELSE 0 END AS agreement
    FROM unified_memory_vectors m
    WHERE m.user_id = $1 AND m.id = ANY ($2) AND m.removed_at IS NULL AND m.vector_type::text = ANY ($3)
        AND ($4 IS NULL OR m.session_id = $4) AND ($5 IS NULL OR m.occurred_at >= $5) AND ($6 IS NULL OR m.occurred_at < $6)
        AND m.metadata @> $7::jsonb AND (NOT m.is_of_node OR EXISTS (
            SELECT FROM consensus_memory_nodes n WHERE n.user_id = m.user_id AND n.id = m.memory_node_id
                AND n.validation_status = 'validated' AND n.valid_to IS NULL))";

#[derive(QueryableByName)]
struct Candidate {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    occurred_at: DateTime<Utc>,
    #[diesel(sql_type = Double)]
    agreement: f64,
}

const READ: &str = concat!(
    "WITH page AS (
        SELECT m.*, i.place, sum(octet_length(m.content_text) + octet_length(m.metadata::text)) OVER (ORDER BY i.place) AS bytes
        FROM unnest($2::uuid[]) WITH ORDINALITY AS i (id, place)
        JOIN unified_memory_vectors m ON m.user_id = $1 AND m.id = i.id
    )
    SELECT id, memory_node_id, session_id, vector_type::text AS vector_type, speaker, content_text, metadata::text AS metadata,
        occurred_at, removed_at IS NOT NULL AS is_removed
    FROM page WHERE ",
    fits!("place = 1", "place = 1 OR bytes <= $3"),
    " ORDER BY place"
);

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

impl Search {
    /// Ranks what full text and the vectors found, and reads the best memories.
    pub(super) async fn hits(
        &self,
        connection: &mut Connection,
        user: UserId,
        scope: &SearchScope,
        by_vector: &[ScoredMemory],
    ) -> Result<Vec<SearchHit>, Fault> {
        let by_words = match self.words() {
            Some(words) => self.by_words(connection, user, scope, words).await?,
            None => Vec::new(),
        };
        let candidates = self.candidates(connection, user, scope, &by_words, by_vector).await?;
        let scored = self.fuse(&by_words, by_vector, &candidates, Utc::now());
        let ids: Vec<Uuid> = scored.iter().map(|(id, _, _)| *id).collect();
        let statement = diesel::sql_query(READ)
            .bind::<Integer, _>(user.get())
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let scores: HashMap<Uuid, (f64, ScoreParts)> =
            scored.into_iter().map(|(id, score, parts)| (id, (score, parts))).collect();
        let hit = |row: Row| {
            let (score, parts) = scores.get(&row.id).copied().unwrap_or_default();
            let node = row.memory_node_id.filter(|_| !row.is_removed)?;
            Some(row.into_hit(node, score, parts))
        };
        rows.into_iter().filter_map(hit).collect()
    }

    async fn by_words(
        &self,
        connection: &mut Connection,
        user: UserId,
        scope: &SearchScope,
        words: &str,
    ) -> Result<Vec<WordMatch>, Fault> {
        let statement = diesel::sql_query(BY_WORDS)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(words)
            .bind::<Array<Text>, _>(labels(&scope.types))
            .bind::<Nullable<Text>, _>(self.query.session_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Timestamptz>, _>(self.query.since)
            .bind::<Nullable<Timestamptz>, _>(self.query.until)
            .bind::<Text, _>(self.query.metadata.as_str())
            .bind::<BigInt, _>(MAX_WORD_MATCHES)
            .bind::<Array<Text>, _>(labels(&scope.permitted));
        Ok(store::prepared(statement).load(connection).await?)
    }

    /// Reads the columns needed for ranking. If only vectors determine the order, only the memories of the answer are
    /// read, because each row is on another disk page.
    async fn candidates(
        &self,
        connection: &mut Connection,
        user: UserId,
        scope: &SearchScope,
        by_words: &[WordMatch],
        by_vector: &[ScoredMemory],
    ) -> Result<HashMap<Uuid, Candidate>, Fault> {
        let mut seen = HashSet::new();
        let found = by_words.iter().map(|one| one.id).chain(by_vector.iter().map(|one| one.memory));
        let ids: Vec<Uuid> = found.filter(|id| seen.insert(*id)).collect();
        let enough = if self.is_ranked_by_vectors_only() { self.limit() } else { ids.len() };
        let mut candidates = HashMap::with_capacity(enough);
        for some in ids.chunks(enough.max(1)) {
            let statement = diesel::sql_query(CANDIDATES)
                .bind::<Integer, _>(user.get())
                .bind::<Array<SqlUuid>, _>(some)
                .bind::<Array<Text>, _>(labels(&scope.types))
                .bind::<Nullable<Text>, _>(self.query.session_id.as_ref().map(SessionId::as_str))
                .bind::<Nullable<Timestamptz>, _>(self.query.since)
                .bind::<Nullable<Timestamptz>, _>(self.query.until)
                .bind::<Text, _>(self.query.metadata.as_str())
                .bind::<Bool, _>(self.query.consensus_boost.get() > 0.0);
            let rows: Vec<Candidate> = store::prepared(statement).load(connection).await?;
            candidates.extend(rows.into_iter().map(|row| (row.id, row)));
            if candidates.len() >= enough {
                break;
            }
        }
        Ok(candidates)
    }

    /// Combines both rankings: the best memories first, up to the limit of the query.
    fn fuse(
        &self,
        by_words: &[WordMatch],
        by_vector: &[ScoredMemory],
        candidates: &HashMap<Uuid, Candidate>,
        now: DateTime<Utc>,
    ) -> Vec<(Uuid, f64, ScoreParts)> {
        let mut parts: HashMap<Uuid, ScoreParts> = HashMap::new();
        let mut rank = 0;
        for found in by_vector.iter().filter(|found| candidates.contains_key(&found.memory)) {
            rank += 1;
            let part = parts.entry(found.memory).or_default();
            (part.cosine, part.vector_rank) = (Some(f64::from(found.cosine)), Some(rank));
            part.fused += VECTOR_WEIGHT / (K + f64::from(rank));
        }
        let mut rank = 0;
        for one in by_words.iter().filter(|one| candidates.contains_key(&one.id)) {
            rank += 1;
            let part = parts.entry(one.id).or_default();
            (part.fulltext, part.fulltext_rank) = (Some(one.score), Some(rank));
            part.fused += 1.0 / (K + f64::from(rank));
        }
        #[allow(clippy::cast_precision_loss, reason = "hours, at most ten years")]
        let half_life_s = self.query.recency_half_life_hours.get() as f64 * 3_600.0;
        let mut scored: Vec<(Uuid, f64, ScoreParts)> = parts
            .into_iter()
            .filter_map(|(id, mut part)| {
                let row = candidates.get(&id)?;
                #[allow(clippy::cast_precision_loss, reason = "seconds, which are few enough")]
                let age_s = (now - row.occurred_at).num_seconds().max(0) as f64;
                part.recency = 1.0 + self.query.recency_boost.get() * (-age_s / half_life_s).exp2();
                part.consensus = 1.0 + self.query.consensus_boost.get() * row.agreement;
                Some((id, part.fused * part.recency * part.consensus, part))
            })
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored.truncate(self.limit());
        scored
    }
}

fn labels(types: &[VectorType]) -> Vec<&'static str> {
    types.iter().map(|one| one.as_str()).collect()
}

impl Row {
    fn into_hit(self, memory_node_id: Uuid, score: f64, parts: ScoreParts) -> Result<SearchHit, Fault> {
        Ok(SearchHit {
            memory_id: self.id,
            memory_node_id,
            session_id: self.session_id,
            vector_type: label(&self.vector_type)?,
            speaker: self.speaker,
            content_text: self.content_text,
            metadata: json(self.metadata)?,
            occurred_at: self.occurred_at,
            score,
            parts,
        })
    }
}
