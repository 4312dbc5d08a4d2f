//! Queries.

use qdrant_client::qdrant::query::Variant;
use qdrant_client::qdrant::{
    DenseVector, QuantizationSearchParams, Query, QueryPoints, SearchParams, VectorInput, vector_input,
};
use qdrant_edge as engine;
use qdrant_edge::external::ordered_float::OrderedFloat;
use tonic::Status;

use crate::convert::{filter, point};
use crate::reject::{invalid, reject_if, unsupported};
use crate::settings::count;

/// The limit of a query that names none, as in a Qdrant server.
const USUAL_LIMIT: u64 = 10;

/// A query as a type of the engine.
pub(crate) struct Asked {
    pub(crate) request: engine::QueryRequest,
    /// How many of the best points to skip. The engine reads them, and its caller has to skip them.
    pub(crate) skip: usize,
}

/// The query, of a collection whose vectors have this many dimensions.
pub(crate) fn query(request: QueryPoints, size: usize) -> Result<Asked, Status> {
    let QueryPoints {
        collection_name: _,
        prefetch,
        query,
        using,
        filter,
        params,
        score_threshold,
        limit,
        offset,
        with_vectors,
        with_payload,
        // There is a single copy of the data, and every read sees all earlier writes.
        read_consistency: _,
        shard_key_selector,
        lookup_from,
        // The deadline of the client applies.
        timeout: _,
    } = request;
    reject_if(!prefetch.is_empty(), "prefetches")?;
    reject_if(using.is_some_and(|using| !using.is_empty()), "named vectors")?;
    reject_if(shard_key_selector.is_some(), "shard keys")?;
    reject_if(lookup_from.is_some(), "lookup_from")?;
    let limit = limit.unwrap_or(USUAL_LIMIT);
    if limit == 0 {
        return Err(invalid("Validation error in body: [limit: value 0 invalid, must be 1 or larger]"));
    }
    let vector = nearest(query)?;
    point::check_size(&vector, size)?;
    let nearest = engine::NamedQuery { query: engine::VectorInternal::Dense(vector), using: None };
    let skip = count(offset.unwrap_or(0));
    let request = engine::QueryRequest {
        prefetches: Vec::new(),
        query: Some(engine::ScoringQuery::Vector(engine::QueryEnum::Nearest(nearest))),
        filter: filter.map(filter::filter).transpose()?,
        score_threshold: score_threshold.map(OrderedFloat),
        limit: count(limit).saturating_add(skip),
        offset: 0,
        params: params.map(self::params).transpose()?,
        with_vector: point::with_vectors(with_vectors)?,
        with_payload: point::with_payload(with_payload)?.unwrap_or(engine::WithPayloadInterface::Bool(false)),
    };
    Ok(Asked { request, skip })
}

fn nearest(query: Option<Query>) -> Result<Vec<f32>, Status> {
    let input = match query.and_then(|Query { variant }| variant) {
        Some(Variant::Nearest(VectorInput { variant })) => variant,
        Some(Variant::Recommend(_)) => return Err(unsupported("the query recommend")),
        Some(Variant::Discover(_)) => return Err(unsupported("the query discover")),
        Some(Variant::Context(_)) => return Err(unsupported("the query context")),
        Some(Variant::OrderBy(_)) => return Err(unsupported("the query order_by")),
        Some(Variant::Fusion(_)) => return Err(unsupported("the query fusion")),
        Some(Variant::Sample(_)) => return Err(unsupported("the query sample")),
        Some(Variant::Formula(_)) => return Err(unsupported("the query formula")),
        Some(Variant::NearestWithMmr(_)) => return Err(unsupported("the query nearest_with_mmr")),
        Some(Variant::Rrf(_)) => return Err(unsupported("the query rrf")),
        Some(Variant::RelevanceFeedback(_)) => return Err(unsupported("the query relevance_feedback")),
        Some(Variant::Text(_)) => return Err(unsupported("the query text")),
        None => return Err(unsupported("queries that name no vector (scroll does)")),
    };
    match input {
        Some(vector_input::Variant::Dense(DenseVector { data })) => Ok(data),
        Some(vector_input::Variant::Id(_)) => Err(unsupported("queries by the id of a point")),
        Some(vector_input::Variant::Sparse(_)) => Err(unsupported("sparse vectors")),
        Some(vector_input::Variant::MultiDense(_)) => Err(unsupported("multivectors")),
        Some(
            vector_input::Variant::Document(_)
            | vector_input::Variant::Image(_)
            | vector_input::Variant::Object(_),
        ) => Err(unsupported("inference")),
        None => Err(invalid("VectorInput variant is missing")),
    }
}

fn params(params: SearchParams) -> Result<engine::SearchParams, Status> {
    let SearchParams { hnsw_ef, exact, quantization, indexed_only, acorn, idf } = params;
    reject_if(acorn.is_some(), "params.acorn")?;
    reject_if(idf.is_some(), "params.idf")?;
    Ok(engine::SearchParams {
        hnsw_ef: hnsw_ef.map(count),
        exact: exact.unwrap_or(false),
        quantization: quantization.map(self::quantization).transpose()?,
        indexed_only: indexed_only.unwrap_or(false),
        acorn: None,
    })
}

fn quantization(params: QuantizationSearchParams) -> Result<engine::QuantizationSearchParams, Status> {
    let QuantizationSearchParams { ignore, rescore, oversampling } = params;
    if oversampling.is_some_and(|oversampling| oversampling.is_nan() || oversampling < 1.0) {
        return Err(invalid(
            "Validation error in body: [params.quantization.oversampling: must be 1.0 or larger]",
        ));
    }
    Ok(engine::QuantizationSearchParams { ignore: ignore.unwrap_or(false), rescore, oversampling })
}
