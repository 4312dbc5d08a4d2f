//! Points, and the pseudonyms of users, sessions and filter values in their payloads.

use std::collections::HashMap;

use contract::{SessionId, VectorType};
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::{PointId, PointStruct, RetrievedPoint, Value as QdrantValue, value::Kind};
use serde_json::Value;
use sha2::Sha256;
use uuid::Uuid;

/// The fields of a payload. The first one is the tenant, which has a tenant index.
pub(crate) const TENANT: &str = "tenant";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const WRITTEN: &str = "written";
pub(crate) const SESSION: &str = "session";
pub(crate) const TYPE: &str = "type";
pub(crate) const TIME: &str = "time";
pub(crate) const META: &str = "meta";

/// The maximum number of metadata values of a memory that searches can filter by.
const MAX_META: usize = 64;
/// The UUID namespace of point ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x5b3c_5d3f_6f0a_4e3d_9c59_6f1d_7a50_f1e1);

/// The pseudonym of a user in the vector store. The database returns it for users in the security context only
/// (`sec.vector_tenants`).
#[derive(Clone)]
pub struct Tenant {
    /// The pseudonym.
    pub(crate) token: Uuid,
    /// The HMAC key of filter values.
    filter_key: Vec<u8>,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenant").finish_non_exhaustive()
    }
}

impl Tenant {
    /// A tenant as stored in the database.
    pub fn new(token: Uuid, filter_key: Vec<u8>) -> Self {
        Self { token, filter_key }
    }

    /// The pseudonym.
    pub fn token(&self) -> Uuid {
        self.token
    }

    /// The keyed digest of a filter value, from which the value cannot be guessed without the key.
    fn digest(&self, kind: &str, parts: &[&str]) -> String {
        // HMAC accepts a key of any length.
        let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.filter_key) else {
            return String::new();
        };
        for part in std::iter::once(&kind).chain(parts) {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part.as_bytes());
        }
        HEXLOWER.encode(&mac.finalize().into_bytes()[..16])
    }

    pub(crate) fn session(&self, session: &SessionId) -> String {
        self.digest("session", &[session.as_str()])
    }
}

/// The filter digests of the top-level strings, numbers and booleans of metadata, at most 64.
pub fn metadata_digests(tenant: &Tenant, metadata: &str) -> Vec<String> {
    let Ok(Value::Object(values)) = serde_json::from_str(metadata) else { return Vec::new() };
    let digest = |(key, value): (&String, &Value)| {
        let (kind, text) = match value {
            Value::String(text) => ("text", text.clone()),
            Value::Bool(value) => ("boolean", value.to_string()),
            // 1 and 1.0 are equal, as in PostgreSQL.
            Value::Number(number) => {
                ("number", number.as_f64().map_or(number.to_string(), |value| value.to_string()))
            }
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some(tenant.digest("meta", &[key, kind, &text]))
    };
    values.iter().filter_map(digest).take(MAX_META).collect()
}

/// The id of the first point that a message writes for a memory. It is derived from the request id and from the time at
/// which JetStream stored the message: a redelivery writes the same point, and no other message does, not even one with
/// the same request id that another worker processes at the same time.
pub fn first_point_id(tenant: &Tenant, request: Uuid, written: i64, memory: Uuid) -> Uuid {
    let mut name = [0; 56];
    name[..16].copy_from_slice(tenant.token.as_bytes());
    name[16..32].copy_from_slice(request.as_bytes());
    name[32..48].copy_from_slice(memory.as_bytes());
    name[48..].copy_from_slice(&written.to_be_bytes());
    Uuid::new_v5(&NAMESPACE, &name)
}

/// The ids of the points of a long text, one for each chunk, from that of the first one.
pub fn chunk_ids(first: Uuid, count: usize) -> impl Iterator<Item = Uuid> {
    (0..count).map(move |chunk| match chunk {
        0 => first,
        _ => Uuid::new_v5(&first, &u64::try_from(chunk).unwrap_or(u64::MAX).to_be_bytes()),
    })
}

/// The payload that the points of a memory share.
#[derive(Clone, Debug)]
pub struct PointKey {
    /// The memory.
    pub memory: Uuid,
    /// When JetStream stored the request, in microseconds since 1970. It orders the requests of a memory.
    pub written: i64,
    /// The session.
    pub session: Option<SessionId>,
    /// The type.
    pub vector_type: VectorType,
    /// When it was said, in milliseconds since 1970.
    pub time: i64,
    /// See [`metadata_digests`].
    pub meta: Vec<String>,
}

/// A point: a vector with its payload.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its id.
    pub id: Uuid,
    /// The vector.
    pub vector: Vec<f32>,
    /// The tenant.
    pub tenant: Tenant,
    /// Its payload.
    pub key: PointKey,
}

impl Point {
    pub(crate) fn into_struct(self) -> PointStruct {
        let Self { id, vector, tenant, key } = self;
        let mut payload = HashMap::from([
            (TENANT, QdrantValue::from(tenant.token.to_string())),
            (MEMORY, QdrantValue::from(key.memory.to_string())),
            (WRITTEN, QdrantValue::from(key.written)),
            (TYPE, QdrantValue::from(key.vector_type.as_str())),
            (TIME, QdrantValue::from(key.time)),
        ]);
        if let Some(session) = &key.session {
            payload.insert(SESSION, QdrantValue::from(tenant.session(session)));
        }
        if !key.meta.is_empty() {
            payload.insert(META, QdrantValue::from(key.meta));
        }
        let payload: HashMap<String, QdrantValue> =
            payload.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
        PointStruct::new(id.to_string(), vector, payload)
    }
}

/// The points of a memory that a later request superseded.
#[derive(Clone, Debug)]
pub struct SupersededPoints {
    /// The tenant.
    pub tenant: Tenant,
    /// The memory.
    pub memory: Uuid,
    /// The range of [`PointKey::written`] of the points.
    pub written: std::ops::Range<i64>,
}

/// A point as the reconciler reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPoint {
    /// Its id.
    pub id: Uuid,
    /// The tenant.
    pub tenant: Option<Uuid>,
    /// The memory.
    pub memory: Option<Uuid>,
    /// See [`PointKey::written`].
    pub written: i64,
}

impl StoredPoint {
    pub(crate) fn new(point: &RetrievedPoint) -> Option<Self> {
        let uuid = |field: &str| text(&point.payload, field).and_then(|text| text.parse().ok());
        let written = match point.payload.get(WRITTEN).and_then(|value| value.kind.as_ref()) {
            Some(Kind::IntegerValue(written)) => *written,
            _ => 0,
        };
        Some(Self {
            id: point_uuid(point.id.as_ref()?)?,
            tenant: uuid(TENANT),
            memory: uuid(MEMORY),
            written,
        })
    }
}

pub(crate) fn text<'a>(payload: &'a HashMap<String, QdrantValue>, field: &str) -> Option<&'a str> {
    match payload.get(field).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

pub(crate) fn point_uuid(id: &PointId) -> Option<Uuid> {
    match id.point_id_options.as_ref()? {
        PointIdOptions::Uuid(id) => id.parse().ok(),
        PointIdOptions::Num(_) => None,
    }
}
