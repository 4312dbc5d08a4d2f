//! What is due, and the closed tasks that an estimate is computed from.

use std::collections::HashMap;

use ::store::{Connection, Fault, Pool, security};
use chrono::{DateTime, TimeDelta, Utc};
use consensus::ReliabilityRules;
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

/// The most kinds of tasks of one tick.
const KINDS: i32 = 1_000;
/// The tasks that are read at a time: a task has up to 500 answers.
const PAGE: usize = 500;

/// Of tables that were never analyzed, PostgreSQL believes that any index with the user finds a task as well as its key does. Looking up
/// 20,000 tasks so took a minute. For statements that join tasks with their estimates.
const HASH_JOINS: &str = "SET LOCAL enable_nestloop = off";

/// What has waited longest comes first, so that no user is left out for good.
const DUE: &str = "
    SELECT t.user_id, t.task_kind FROM task_estimates e JOIN consensus_tasks t ON t.user_id = e.user_id AND t.id = e.id
    WHERE e.estimated_at IS NULL
    GROUP BY t.user_id, t.task_kind ORDER BY min(e.updated_at), t.user_id, t.task_kind LIMIT $1";

/// A kind of tasks that is due.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Due {
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    #[diesel(sql_type = Text)]
    pub task_kind: String,
}

/// What is due of the users of these grants.
pub(super) async fn due(pool: &Pool, grants: &[&str]) -> Result<Vec<Due>, Fault> {
    let mut connection = ::store::acquire(pool).await?;
    let found: Result<Vec<Due>, Fault> = connection
        .transaction(async |connection| {
            security::open_context(connection, grants).await?;
            connection.batch_execute(HASH_JOINS).await?;
            let query = diesel::sql_query(DUE).bind::<Integer, _>(KINDS);
            Ok(::store::prepared(query).load(connection).await?)
        })
        .await;
    ::store::discard_if_unusable(connection, &found);
    found
}

/// A page of the closed tasks of a kind, the newest first. The same agents answer many tasks: their names are sent once for all that
/// follow one another, since there may be a million.
const CLOSED: &str = "
    SELECT t.id, t.options::text AS options,
        CASE WHEN t.voters IS DISTINCT FROM lag(t.voters) OVER newest THEN t.voters END AS voters, t.choices, t.confidences, t.truth, t.closed_at, e.updated_at,
        e.estimated_at IS NULL AS is_new, e.answer, e.probability
    FROM (SELECT * FROM consensus_tasks t
        WHERE t.user_id = $1 AND t.task_kind = $2 AND t.state = 'closed' AND (t.closed_at, t.id) < ($3, $4)
        ORDER BY t.closed_at DESC, t.id DESC LIMIT $5) AS t
    CROSS JOIN LATERAL (SELECT * FROM task_estimates e WHERE e.user_id = t.user_id AND e.id = t.id OFFSET 0) AS e
    WINDOW newest AS (ORDER BY t.closed_at DESC, t.id DESC) ORDER BY t.closed_at DESC, t.id DESC";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    options: Option<String>,
    /// None: those of the row before.
    #[diesel(sql_type = Nullable<Array<Text>>)]
    voters: Option<Vec<String>>,
    #[diesel(sql_type = Array<Nullable<Integer>>)]
    choices: Vec<Option<i32>>,
    #[diesel(sql_type = Array<Nullable<Double>>)]
    confidences: Vec<Option<f64>>,
    #[diesel(sql_type = Nullable<Integer>)]
    truth: Option<i32>,
    #[diesel(sql_type = Timestamptz)]
    closed_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    updated_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    is_new: bool,
    #[diesel(sql_type = Nullable<Integer>)]
    answer: Option<i32>,
    #[diesel(sql_type = Nullable<Double>)]
    probability: Option<f64>,
}

/// Of the tasks before a given one that no estimate has taken in: the newest, and how many there are.
const OLDER: &str = "
    SELECT t.closed_at, t.id, count(*) OVER () AS due
    FROM task_estimates e JOIN consensus_tasks t ON t.user_id = e.user_id AND t.id = e.id
    WHERE e.user_id = $1 AND e.estimated_at IS NULL AND t.task_kind = $2 AND t.state = 'closed' AND (t.closed_at, t.id) < ($3, $4)
    ORDER BY t.closed_at DESC, t.id DESC LIMIT 1";

#[derive(QueryableByName)]
struct Older {
    #[diesel(sql_type = Timestamptz)]
    closed_at: DateTime<Utc>,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    due: i64,
}

/// The families of a user's agents.
const FAMILIES: &str = "
    SELECT c.agent_id, coalesce(c.model_family, c.model_provider::text) AS family FROM agent_configurations c
    WHERE c.user_id = $1";

#[derive(QueryableByName)]
struct Family {
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    family: String,
}

/// A vote of an agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vote {
    /// The place of its name in [`Basis::agents`].
    pub agent: u32,
    pub choice: Option<u32>,
    pub confidence: Option<f64>,
}

/// A closed task.
#[derive(Debug)]
pub(super) struct Closed {
    pub id: Uuid,
    pub votes: Vec<Vote>,
    pub truth: Option<i32>,
    /// When what is held of it changed last.
    pub updated_at: DateTime<Utc>,
    /// Whether no estimate has taken it in.
    pub is_new: bool,
    pub estimated_answer: Option<i32>,
    pub estimated_probability: Option<f64>,
}

/// Tasks by their options, oldest first. Those without options are together too.
type Tasks = HashMap<Option<String>, Vec<Closed>>;

/// When a task closed, and its id.
type Position = (DateTime<Utc>, Uuid);

/// What an estimate is computed from.
#[derive(Debug)]
pub(super) struct Basis {
    pub due: Due,
    /// The newest tasks, as many as the limits allow.
    pub tasks: Tasks,
    /// Older ones that no estimate has taken in: they are judged by what the estimate finds of their agents.
    pub older: Tasks,
    /// The names of the agents that voted.
    pub agents: Vec<String>,
    pub families: HashMap<String, String>,
}

/// What is read before it is enough.
#[derive(Clone, Copy)]
struct Wanted {
    /// Tasks that closed before this one.
    before: Position,
    /// So many that no estimate has taken in.
    new: usize,
}

impl Basis {
    /// Reads it in a transaction of its own.
    pub async fn find(
        pool: &Pool,
        grants: &[&str],
        due: Due,
        limits: &ReliabilityRules,
    ) -> Result<Self, Fault> {
        let mut connection = ::store::acquire(pool).await?;
        let found: Result<Self, Fault> = connection
            .transaction(async |connection| {
                security::open_context(connection, grants).await?;
                Self::read(connection, due, limits).await
            })
            .await;
        ::store::discard_if_unusable(connection, &found);
        found
    }

    /// Reads the newest tasks, as far as the limits reach, and as many again of those that are due beyond them: what is left is due
    /// at the next tick.
    async fn read(connection: &mut Connection, due: Due, limits: &ReliabilityRules) -> Result<Self, Fault> {
        let query = diesel::sql_query(FAMILIES).bind::<Integer, _>(due.user_id);
        let families: Vec<Family> = ::store::prepared(query).load(connection).await?;
        let families = families.into_iter().map(|one| (one.agent_id, one.family)).collect();
        let (tasks, older) = (Tasks::new(), Tasks::new());
        let mut basis = Self { due, tasks, older, agents: Vec::new(), families };
        let mut numbers = HashMap::new();
        let newest = Wanted { before: (last(), Uuid::max()), new: usize::MAX };
        let (tasks, oldest) = basis.pages(connection, newest, limits, &mut numbers).await?;
        basis.tasks = tasks;
        let Some(oldest) = oldest else { return Ok(basis) };
        if let Some(wanted) = basis.older_than(connection, oldest).await? {
            let (mut older, _) = basis.pages(connection, wanted, limits, &mut numbers).await?;
            older.values_mut().for_each(|tasks| tasks.retain(|task| task.is_new));
            basis.older = older;
        }
        Ok(basis)
    }

    /// The tasks that closed before this one and that no estimate has taken in.
    async fn older_than(
        &self,
        connection: &mut Connection,
        oldest: Position,
    ) -> Result<Option<Wanted>, Fault> {
        connection.batch_execute(HASH_JOINS).await?;
        let query = diesel::sql_query(OLDER)
            .bind::<Integer, _>(self.due.user_id)
            .bind::<Text, _>(&self.due.task_kind)
            .bind::<Timestamptz, _>(oldest.0)
            .bind::<SqlUuid, _>(oldest.1);
        let found: Vec<Older> = ::store::prepared(query).load(connection).await?;
        connection.batch_execute("SET LOCAL enable_nestloop = on").await?;
        let wanted = |older: Older| {
            // Ids are ordered as numbers: what is before the next one begins with this one.
            let before = match older.id.as_u128().checked_add(1) {
                Some(next) => (older.closed_at, Uuid::from_u128(next)),
                None => (older.closed_at + TimeDelta::microseconds(1), Uuid::nil()),
            };
            Wanted { before, new: usize::try_from(older.due).unwrap_or(usize::MAX) }
        };
        Ok(found.into_iter().next().map(wanted))
    }

    /// Reads tasks, the newest first, page by page, so that names are held once. The last one that was read is returned too, if
    /// there may be older ones.
    async fn pages(
        &mut self,
        connection: &mut Connection,
        wanted: Wanted,
        limits: &ReliabilityRules,
        numbers: &mut HashMap<String, u32>,
    ) -> Result<(Tasks, Option<Position>), Fault> {
        let Wanted { mut before, new: mut missing } = wanted;
        let (mut found, mut tasks, mut answers) = (Tasks::new(), 0, 0);
        loop {
            let limit = PAGE.min(limits.task_limit - tasks);
            let rows = self.page(connection, before, limit).await?;
            let is_last = rows.len() < limit;
            let mut voters = Vec::new();
            for mut row in rows {
                if let Some(names) = row.voters.take() {
                    voters = self.numbers_of(names, numbers);
                }
                answers += voters.len();
                if answers > limits.answer_limit {
                    return Ok((in_order(found), Some(before).filter(|_| tasks > 0)));
                }
                tasks += 1;
                missing = missing.saturating_sub(usize::from(row.is_new));
                before = (row.closed_at, row.id);
                found.entry(row.options.take()).or_default().push(Closed::new(row, &voters));
            }
            if is_last {
                return Ok((in_order(found), None));
            }
            if tasks >= limits.task_limit || missing == 0 {
                return Ok((in_order(found), Some(before)));
            }
        }
    }

    async fn page(
        &self,
        connection: &mut Connection,
        before: Position,
        limit: usize,
    ) -> Result<Vec<Row>, Fault> {
        let query = diesel::sql_query(CLOSED)
            .bind::<Integer, _>(self.due.user_id)
            .bind::<Text, _>(&self.due.task_kind)
            .bind::<Timestamptz, _>(before.0)
            .bind::<SqlUuid, _>(before.1)
            .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX));
        Ok(::store::prepared(query).load(connection).await?)
    }

    /// The places of names in [`Basis::agents`].
    fn numbers_of(&mut self, names: Vec<String>, numbers: &mut HashMap<String, u32>) -> Vec<u32> {
        let number = |name| {
            let next = u32::try_from(self.agents.len()).unwrap_or(u32::MAX);
            *numbers.entry(name).or_insert_with_key(|name: &String| {
                self.agents.push(name.clone());
                next
            })
        };
        names.into_iter().map(number).collect()
    }
}

impl Closed {
    fn new(row: Row, voters: &[u32]) -> Self {
        let answers = voters.iter().zip(row.choices).zip(row.confidences);
        let votes = answers
            .map(|((agent, choice), confidence)| Vote {
                agent: *agent,
                choice: choice.and_then(|choice| u32::try_from(choice).ok()),
                confidence,
            })
            .collect();
        Self {
            id: row.id,
            votes,
            truth: row.truth,
            updated_at: row.updated_at,
            is_new: row.is_new,
            estimated_answer: row.answer,
            estimated_probability: row.probability,
        }
    }
}

/// Oldest first.
fn in_order(mut tasks: Tasks) -> Tasks {
    tasks.values_mut().for_each(|tasks| tasks.reverse());
    tasks
}

/// No task closes later: the database bounds times.
fn last() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 999_999_000).unwrap_or_default()
}
