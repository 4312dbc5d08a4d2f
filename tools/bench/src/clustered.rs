//! Deterministic memories of many users with synthetic vectors, which are clustered as text embeddings are.

use std::collections::HashMap;
use std::f32::consts::TAU;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::errln;
use contract::VectorType;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use fastrand::Rng;
use store::Connection;
use tokio::time::sleep;
use uuid::Uuid;
use vectors::{CollectionInfo, Point, PointKey, Tenant, VectorStore};

use super::filled::fill_tables;

/// The nominal model of the vectors.
pub(super) const MODEL: &str = "bench-384";
/// The dimension of its vectors.
pub(super) const DIMENSION: usize = 384;
/// Number of clusters per user.
const CENTRES: u64 = 20;
/// Distance of vectors from their cluster's centre, a unit vector.
const SPREAD: f32 = 0.7;
/// Distance of a query's vector from that of a memory.
const NEAR: f32 = 0.3;
/// Points per upsert.
const BATCH: usize = 1_000;
/// Time limit for the vector store to build its indexes.
const SETTLED_WITHIN: Duration = Duration::from_secs(20 * 60);
/// The store must report this long that it is settled, without indexing anything: it also reports so between two steps.
const STEADY_FOR: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The statements that fill the tables. `{points}`, `{users}` and `{model}` are replaced. Rows of one user are spread
/// over the table, as when users write alternately. The id of a memory is its number.
const FILL: [&str; 5] = [
    "INSERT INTO users (id, username, email) SELECT n, 'u' || n, n || '@example.org' FROM generate_series(1, {users}) AS n",
    // Replaces a trigger, which is disabled here. The tenants of the vector store are derived from these rows.
    "INSERT INTO audit.subjects (user_id) SELECT id FROM users ON CONFLICT DO NOTHING",
    "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
     SELECT uuid7(), u, 's', 'simple'::chat_mode FROM generate_series(1, {users}) AS u",
    "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
     SELECT lpad(to_hex(n), 32, '0')::uuid, 1 + n % {users}, 'memory', lpad(to_hex(n), 32, '0')::uuid::text, 'context', '{}'::jsonb
     FROM generate_series(1, {points}) AS n",
    "INSERT INTO unified_memory_vectors (id, user_id, memory_node_id, session_id, vector_type, content_text, embedding_model,
         qdrant_point_id, content_words, is_brought)
     SELECT lpad(to_hex(n), 32, '0')::uuid, 1 + n % {users}, lpad(to_hex(n), 32, '0')::uuid, 's', 'context'::vectortype,
         'quiet museum ' || n, '{model}', gen_random_uuid(), memory_words('quiet museum ' || n), true
     FROM generate_series(1, {points}) AS n",
];

const MEMORIES: &str = "
    SELECT id, user_id, qdrant_point_id AS point, (extract(epoch FROM updated_at) * 1000000)::bigint AS written
    FROM unified_memory_vectors ORDER BY id";

#[derive(QueryableByName)]
struct Memory {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    point: Uuid,
    #[diesel(sql_type = BigInt)]
    written: i64,
}

impl Memory {
    fn vector(&self) -> Vec<f32> {
        vector_of(self.user_id, self.id)
    }
}

/// The memories in both stores.
pub(super) struct Loaded {
    memories: Vec<Memory>,
    tenants: HashMap<i32, Tenant>,
    /// Time that the vector store took to store the points.
    pub(super) seconds: f64,
}

/// A user's search.
pub(super) struct Search {
    pub(super) user: i32,
    pub(super) vector: Vec<f32>,
}

impl Loaded {
    pub(super) fn tenant(&self, user: i32) -> anyhow::Result<&Tenant> {
        self.tenants.get(&user).with_context(|| format!("user {user} has no tenant"))
    }

    /// Searches of random users, each close to one of the user's memories.
    pub(super) fn searches(&self, count: usize, seed: u64) -> Vec<Search> {
        let mut random = Rng::with_seed(seed);
        let searches = (0..count).filter_map(|_| {
            let memory = random.choice(self.memories.as_slice())?;
            let vector = moved(&memory.vector(), NEAR, &mut random);
            Some(Search { user: memory.user_id, vector })
        });
        searches.collect()
    }
}

/// Fills the database tables.
pub(super) async fn fill(owner: &mut Connection, points: u32, users: u32) -> anyhow::Result<()> {
    let values =
        [("{points}", points.to_string()), ("{users}", users.to_string()), ("{model}", MODEL.to_owned())];
    fill_tables(owner, &FILL, &values).await
}

/// Stores the points of the memories in the database.
pub(super) async fn load(
    owner: &mut Connection,
    vectors: &VectorStore,
    collection: &str,
) -> anyhow::Result<Loaded> {
    errln!("storing points");
    let rows = store::vector::all_tenants(owner).await?;
    let tenants =
        rows.into_iter().map(|row| (row.user_id, Tenant::new(row.tenant, row.filter_key))).collect();
    let memories: Vec<Memory> = diesel::sql_query(MEMORIES).load(owner).await?;
    let mut loaded = Loaded { memories, tenants, seconds: 0.0 };
    let mut seconds = 0.0;
    for some in loaded.memories.chunks(BATCH) {
        let points: Vec<Point> =
            some.iter().map(|memory| point(memory, &loaded)).collect::<anyhow::Result<_>>()?;
        let started = Instant::now();
        vectors.upsert(collection, points).await?;
        seconds += started.elapsed().as_secs_f64();
    }
    loaded.seconds = seconds;
    Ok(loaded)
}

fn point(memory: &Memory, loaded: &Loaded) -> anyhow::Result<Point> {
    let session = contract::SessionId::new("s").map_err(anyhow::Error::msg)?;
    let key = PointKey {
        memory: memory.id,
        written: memory.written,
        session: Some(session),
        vector_type: VectorType::Context,
        time: memory.written / 1_000,
        meta: Vec::new(),
    };
    let tenant = loaded.tenant(memory.user_id)?.clone();
    Ok(Point { id: memory.point, vector: memory.vector(), tenant, key })
}

/// Waits until the vector store has built its indexes. Returns its state and the seconds it took.
pub(super) async fn settled(
    vectors: &VectorStore,
    collection: &str,
) -> anyhow::Result<(CollectionInfo, f64)> {
    errln!("waiting for the vector indexes");
    let began = Instant::now();
    // The number of indexed vectors while the store reports to be settled, and since when.
    let mut steady: Option<(u64, Instant)> = None;
    loop {
        let info = vectors.collection_info(collection).await?;
        steady = match steady {
            Some((indexed, since)) if info.is_settled && indexed == info.indexed => Some((indexed, since)),
            Some(_) | None => info.is_settled.then(|| (info.indexed, Instant::now())),
        };
        if let Some((_, since)) = steady
            && since.elapsed() >= STEADY_FOR
        {
            return Ok((info, since.duration_since(began).as_secs_f64()));
        }
        ensure!(
            began.elapsed() < SETTLED_WITHIN,
            "{} of {} points were indexed after {SETTLED_WITHIN:?}",
            info.indexed,
            info.points
        );
        sleep(POLL_INTERVAL).await;
    }
}

/// The vector of a memory, computed on demand: a million of them would take 1.5 GB.
fn vector_of(user: i32, memory: Uuid) -> Vec<f32> {
    let (user, number) = (u64::from(user.unsigned_abs()), memory.as_u64_pair().1);
    let mut random = seeded(1, number);
    let centre = user * CENTRES + random.u64(..CENTRES);
    moved(&moved(&[0.0; DIMENSION], 1.0, &mut seeded(2, centre)), SPREAD, &mut random)
}

/// An independent random generator for each kind and number; the multiplication separates adjacent seeds.
fn seeded(kind: u64, number: u64) -> Rng {
    Rng::with_seed(((kind << 56) | number).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// A unit vector at about this distance from another vector, in a random direction.
fn moved(from: &[f32], by: f32, random: &mut Rng) -> Vec<f32> {
    let step = by / (DIMENSION as f32).sqrt();
    let moved: Vec<f32> = from.iter().map(|number| number + step * normal(random)).collect();
    let length = moved.iter().map(|number| number * number).sum::<f32>().sqrt();
    moved.into_iter().map(|number| number / length).collect()
}

/// A normally distributed number (Box-Muller transform).
fn normal(random: &mut Rng) -> f32 {
    // `1 - x` is never zero, whose logarithm is undefined.
    let (distance, angle) = (1.0 - random.f32(), random.f32());
    (-2.0 * distance.ln()).sqrt() * (TAU * angle).cos()
}
