//! The ids of points.

use qdrant_client::qdrant::PointId;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_edge as engine;
use tonic::Status;
use uuid::Uuid;

use crate::reject::invalid;

/// The id as a type of the engine.
pub(crate) fn id(id: PointId) -> Result<engine::PointId, Status> {
    match id.point_id_options {
        Some(PointIdOptions::Num(number)) => Ok(engine::PointId::NumId(number)),
        Some(PointIdOptions::Uuid(text)) => Uuid::parse_str(&text)
            .map(engine::PointId::Uuid)
            .map_err(|_| invalid(format!("Unable to parse UUID: {text}"))),
        None => Err(invalid("No ID options provided")),
    }
}

/// The ids as types of the engine.
pub(crate) fn ids(listed: Vec<PointId>) -> Result<Vec<engine::PointId>, Status> {
    listed.into_iter().map(id).collect()
}

/// An id in a response.
pub(crate) fn answered(id: engine::PointId) -> PointId {
    let options = match id {
        engine::PointId::NumId(number) => PointIdOptions::Num(number),
        engine::PointId::Uuid(uuid) => PointIdOptions::Uuid(uuid.to_string()),
    };
    PointId { point_id_options: Some(options) }
}
