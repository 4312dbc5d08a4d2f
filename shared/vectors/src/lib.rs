//! Qdrant: collections, points, and the one search, which needs a user.
//!
//! A point holds a vector and what it is filtered by: its type, its time, the memory's own id, and digests. No text, no user id, no
//! session id. Who reads the vector
//! store alone learns neither whose a point is nor what it says. A [`Tenant`] is how one user is called in it; every call that
//! reads or deletes points of users takes one, but for those of the reconciler.

mod collection;
mod embedders;
mod error;
mod point;
mod search;
mod store;

pub use collection::{CollectionInfo, CollectionSpec};
pub use embedders::Embedders;
pub use error::VectorError;
pub use point::{
    Point, PointKey, StoredPoint, SupersededPoints, Tenant, chunk_id, first_point_id, metadata_digests,
};
pub use search::{ScoredMemory, VectorQuery};
pub use store::VectorStore;

/// The alias under which the collection that is searched is known to others, and the name that access is given by.
pub const ALIAS: &str = "unified_memory";
