//! The vector store, Qdrant: collections, points and the search, which always filters by user.
//!
//! A point consists of a vector and the payload that searches filter by: its type, its time, the id of the memory, and
//! keyed digests. It contains no text, no user id and no session id, so the vector store alone reveals neither the user
//! nor the text of a point. A [`Tenant`] is the pseudonym of a user in the vector store. Every call that reads or
//! deletes points requires a tenant, except for the calls of the reconciler.

mod collection;
mod embedders;
mod error;
mod owner;
mod owner_cache;
mod point;
mod search;
mod store;
mod tenant;

pub use collection::{CollectionInfo, CollectionSpec};
pub use embedders::Embedders;
pub use error::VectorError;
pub use owner_cache::Owner;
pub use point::{
    Point, PointKey, StoredPoint, SupersededPoints, Tenant, chunk_ids, first_point_id, metadata_digests,
};
pub use search::{ScoredMemory, VectorQuery};
pub use store::VectorStore;
pub use tenant::WholePoint;

/// The default of `vectors.alias`, and the object that services have rights on (`memfleet vectors rights`), whatever the
/// alias is.
pub const ALIAS: &str = "unified_memory";
