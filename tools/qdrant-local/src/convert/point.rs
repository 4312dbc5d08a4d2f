//! Points, their ids, vectors and payloads.

use std::collections::HashMap;

use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::with_payload_selector::SelectorOptions as PayloadOptions;
use qdrant_client::qdrant::with_vectors_selector::SelectorOptions as VectorOptions;
use qdrant_client::qdrant::{
    DenseVector, PointStruct, PointsIdsList, PointsSelector, RetrievedPoint, ScoredPoint, Value, Vector,
    VectorOutput, Vectors, VectorsOutput, WithPayloadSelector, WithVectorsSelector, vector, vector_output,
    vectors_output,
};
use qdrant_edge as engine;
use qdrant_edge::external::serde_json;
use tonic::Status;

use crate::convert::filter;
use crate::convert::id::{self, ids};
use crate::reject::{invalid, reject_if, unsupported};

/// A selection of points.
pub(crate) enum Selected {
    /// The points of these ids.
    Ids(Vec<engine::PointId>),
    /// The points that match a filter.
    Filter(Box<engine::Filter>),
}

/// The selected points.
pub(crate) fn selected(selector: Option<PointsSelector>) -> Result<Selected, Status> {
    match selector.and_then(|selector| selector.points_selector_one_of) {
        Some(PointsSelectorOneOf::Points(PointsIdsList { ids: listed })) => Ok(Selected::Ids(ids(listed)?)),
        Some(PointsSelectorOneOf::Filter(filter)) => Ok(Selected::Filter(Box::new(filter::filter(filter)?))),
        None => Err(invalid("PointsSelector is missing")),
    }
}

/// A point to write.
pub(crate) fn point(point: PointStruct) -> Result<engine::PointStructPersisted, Status> {
    let PointStruct { id, payload, vectors } = point;
    let id = id::id(id.ok_or_else(|| invalid("Empty ID is not allowed"))?)?;
    let vector = match vectors.and_then(|Vectors { vectors_options }| vectors_options) {
        Some(VectorsOptions::Vector(vector)) => dense(vector)?,
        Some(VectorsOptions::Vectors(_)) => return Err(unsupported("named vectors")),
        None => return Err(invalid("Expected some vectors")),
    };
    let vector = engine::VectorStructPersisted::Single(vector);
    // The engine keeps the old payload of a point that is replaced by one without a payload; a Qdrant server does not.
    Ok(engine::PointStructPersisted { id, vector, payload: Some(self::payload(payload)) })
}

#[expect(deprecated, reason = "older clients send vectors in the deprecated fields")]
fn dense(vector: Vector) -> Result<Vec<f32>, Status> {
    let Vector { data, indices, vectors_count, vector } = vector;
    reject_if(indices.is_some(), "sparse vectors")?;
    reject_if(vectors_count.is_some(), "multivectors")?;
    match vector {
        Some(vector::Vector::Dense(DenseVector { data })) => Ok(data),
        Some(vector::Vector::Sparse(_)) => Err(unsupported("sparse vectors")),
        Some(vector::Vector::MultiDense(_)) => Err(unsupported("multivectors")),
        Some(vector::Vector::Document(_) | vector::Vector::Image(_) | vector::Vector::Object(_)) => {
            Err(unsupported("inference"))
        }
        None => Ok(data),
    }
}

/// Rejects points whose vector has another length, as the engine does, but before some of them are written.
pub(crate) fn check_sizes(points: &[engine::PointStructPersisted], size: usize) -> Result<(), Status> {
    points.iter().try_for_each(|point| match &point.vector {
        engine::VectorStructPersisted::Single(vector) => check_size(vector, size),
        // Such points are rejected earlier.
        engine::VectorStructPersisted::MultiDense(_) | engine::VectorStructPersisted::Named(_) => Ok(()),
    })
}

/// Rejects a vector of another length.
pub(crate) fn check_size(vector: &[f32], size: usize) -> Result<(), Status> {
    if vector.len() == size {
        return Ok(());
    }
    let got = vector.len();
    Err(invalid(format!("Wrong input: Vector dimension error: expected dim: {size}, got {got}")))
}

/// The payload as a type of the engine.
pub(crate) fn payload(values: HashMap<String, Value>) -> engine::Payload {
    let fields = values.into_iter().map(|(key, value)| (key, serde_json::Value::from(value)));
    engine::Payload(fields.collect())
}

/// The requested part of the payload, if the request names one.
pub(crate) fn with_payload(
    selector: Option<WithPayloadSelector>,
) -> Result<Option<engine::WithPayloadInterface>, Status> {
    let paths =
        |fields: Vec<String>| fields.iter().map(|field| filter::path(field)).collect::<Result<_, _>>();
    let Some(selector) = selector else { return Ok(None) };
    let selector = match selector.selector_options {
        Some(PayloadOptions::Enable(enable)) => engine::WithPayloadInterface::Bool(enable),
        Some(PayloadOptions::Include(include)) => {
            let include = engine::PayloadSelectorInclude { include: paths(include.fields)? };
            engine::WithPayloadInterface::Selector(engine::PayloadSelector::Include(include))
        }
        Some(PayloadOptions::Exclude(exclude)) => {
            let exclude = engine::PayloadSelectorExclude { exclude: paths(exclude.fields)? };
            engine::WithPayloadInterface::Selector(engine::PayloadSelector::Exclude(exclude))
        }
        None => return Err(invalid("No PayloadSelector")),
    };
    Ok(Some(selector))
}

/// Whether the vector is requested.
pub(crate) fn with_vectors(selector: Option<WithVectorsSelector>) -> Result<engine::WithVector, Status> {
    let Some(selector) = selector else { return Ok(engine::WithVector::Bool(false)) };
    match selector.selector_options {
        Some(VectorOptions::Enable(enable)) => Ok(engine::WithVector::Bool(enable)),
        Some(VectorOptions::Include(_)) => Err(unsupported("named vectors")),
        None => Err(invalid("No VectorsSelector")),
    }
}

/// A point in a response.
pub(crate) fn retrieved(record: engine::Record) -> RetrievedPoint {
    let engine::Record { id, payload, vector, shard_key: _, order_value: _ } = record;
    RetrievedPoint {
        id: Some(id::answered(id)),
        payload: answered_payload(payload),
        vectors: vector.and_then(answered_vectors),
        shard_key: None,
        order_value: None,
    }
}

/// A point in a response, with its score.
pub(crate) fn scored(point: engine::ScoredPoint) -> ScoredPoint {
    let engine::ScoredPoint { id, version, score, payload, vector, shard_key: _, order_value: _ } = point;
    ScoredPoint {
        id: Some(id::answered(id)),
        payload: answered_payload(payload),
        score,
        version,
        vectors: vector.and_then(answered_vectors),
        shard_key: None,
        order_value: None,
    }
}

fn answered_payload(payload: Option<engine::Payload>) -> HashMap<String, Value> {
    let fields = payload.unwrap_or_default().0;
    fields.into_iter().map(|(key, value)| (key, Value::from(value))).collect()
}

/// The vector in the old and the new fields, for clients of every version.
#[expect(deprecated, reason = "older clients read vectors from the deprecated fields")]
fn answered_vectors(vector: engine::VectorStructInternal) -> Option<VectorsOutput> {
    let data = match vector {
        engine::VectorStructInternal::Single(data) => data,
        // Such collections cannot be created.
        engine::VectorStructInternal::MultiDense(_) | engine::VectorStructInternal::Named(_) => return None,
    };
    let vector = vector_output::Vector::Dense(DenseVector { data: data.clone() });
    let output = VectorOutput { data, indices: None, vectors_count: None, vector: Some(vector) };
    Some(VectorsOutput { vectors_options: Some(vectors_output::VectorsOptions::Vector(output)) })
}
