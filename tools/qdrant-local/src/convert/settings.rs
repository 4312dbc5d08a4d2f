//! The request to create a collection.

use qdrant_client::qdrant::binary_quantization_query_encoding::Variant;
use qdrant_client::qdrant::quantization_config::Quantization;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    BinaryQuantization, BinaryQuantizationEncoding, BinaryQuantizationQueryEncoding, CreateCollection,
    Datatype, Distance, HnswConfigDiff, OptimizersConfigDiff, QuantizationConfig, QuantizationType,
    ScalarQuantization, ShardingMethod, VectorParams, VectorsConfig, binary_quantization_query_encoding,
};
use qdrant_edge as engine;
use tonic::Status;

use crate::reject::{invalid, reject_if, unsupported};
use crate::settings::{HnswSettings, OptimizerSettings, Settings, VectorSettings};

/// The most dimensions of a vector in a Qdrant server.
const LONGEST_VECTOR: u64 = 65_536;
/// The characters that a Qdrant server does not allow in the name of a collection.
const NOT_IN_NAMES: &[char] = &['<', '>', ':', '"', '/', '\\', '|', '?', '*', '\0', '\u{1F}'];

/// The name and the settings of the requested collection.
pub(crate) fn collection(request: CreateCollection) -> Result<(String, Settings), Status> {
    let CreateCollection {
        collection_name,
        hnsw_config,
        wal_config,
        optimizers_config,
        shard_number,
        on_disk_payload,
        // The collection is created before the response: there are no other nodes to wait for.
        timeout: _,
        vectors_config,
        replication_factor,
        write_consistency_factor,
        quantization_config,
        sharding_method,
        sparse_vectors_config,
        strict_mode_config,
        metadata,
        payload,
        id_tracker,
    } = request;
    check_name(&collection_name)?;
    reject_if(wal_config.is_some(), "wal_config")?;
    // A single node has one of each.
    reject_if(shard_number.is_some_and(|number| number != 1), "more shards than one")?;
    reject_if(replication_factor.is_some_and(|factor| factor != 1), "more replicas than one")?;
    reject_if(write_consistency_factor.is_some_and(|factor| factor != 1), "more replicas than one")?;
    reject_if(
        sharding_method.is_some_and(|method| method != ShardingMethod::Auto as i32),
        "custom sharding",
    )?;
    reject_if(sparse_vectors_config.is_some_and(|sparse| !sparse.map.is_empty()), "sparse vectors")?;
    reject_if(strict_mode_config.is_some(), "strict mode")?;
    reject_if(!metadata.is_empty(), "metadata of collections")?;
    reject_if(payload.is_some(), "payload storage parameters (on_disk_payload is)")?;
    reject_if(id_tracker.is_some(), "id tracker parameters")?;
    let settings = Settings {
        vector: vectors(vectors_config)?,
        hnsw: hnsw_config.map(hnsw).transpose()?.unwrap_or_default(),
        quantization: quantization_config.map(quantization).transpose()?,
        on_disk_payload: on_disk_payload.unwrap_or(true),
        optimizers: optimizers_config.map(optimizers).transpose()?.unwrap_or_default(),
    };
    Ok((collection_name, settings))
}

/// Rejects names that a Qdrant server rejects.
pub(crate) fn check_name(name: &str) -> Result<(), Status> {
    if name.is_empty() || name.len() > 255 {
        return Err(invalid("Validation error in body: [collection_name: must be from 1 to 255 bytes long]"));
    }
    match name.chars().find(|character| NOT_IN_NAMES.contains(character)) {
        Some(bad) => Err(invalid(format!(
            "Validation error in body: [collection_name: collection name cannot contain {bad:?}]"
        ))),
        None => Ok(()),
    }
}

fn vectors(config: Option<VectorsConfig>) -> Result<VectorSettings, Status> {
    match config.and_then(|config| config.config) {
        Some(Config::Params(params)) => vector(params),
        Some(Config::ParamsMap(_)) => Err(unsupported("named vectors")),
        None => Err(unsupported("collections without vectors")),
    }
}

fn vector(params: VectorParams) -> Result<VectorSettings, Status> {
    let VectorParams {
        size,
        distance,
        hnsw_config,
        quantization_config,
        on_disk,
        datatype,
        multivector_config,
        memory,
    } = params;
    if size == 0 || size > LONGEST_VECTOR {
        return Err(invalid(format!(
            "Validation error in body: [vectors_config.size: value {size} invalid, must be from 1 to {LONGEST_VECTOR}]"
        )));
    }
    let plain = [Datatype::Default as i32, Datatype::Float32 as i32];
    reject_if(datatype.is_some_and(|datatype| !plain.contains(&datatype)), "vectors other than float32")?;
    reject_if(multivector_config.is_some(), "multivectors")?;
    reject_if(memory.is_some(), "memory placement of vectors (on_disk is)")?;
    let distance = match Distance::try_from(distance) {
        Ok(Distance::Cosine) => engine::Distance::Cosine,
        Ok(Distance::Euclid) => engine::Distance::Euclid,
        Ok(Distance::Dot) => engine::Distance::Dot,
        Ok(Distance::Manhattan) => engine::Distance::Manhattan,
        Ok(Distance::UnknownDistance) | Err(_) => return Err(invalid("Unknown distance")),
    };
    Ok(VectorSettings {
        size,
        distance,
        on_disk,
        hnsw: hnsw_config.map(hnsw).transpose()?,
        quantization: quantization_config.map(quantization).transpose()?,
    })
}

fn hnsw(config: HnswConfigDiff) -> Result<HnswSettings, Status> {
    let HnswConfigDiff {
        m,
        ef_construct,
        full_scan_threshold,
        max_indexing_threads,
        on_disk,
        payload_m,
        inline_storage,
        memory,
    } = config;
    reject_if(inline_storage.is_some(), "hnsw_config.inline_storage")?;
    reject_if(memory.is_some(), "memory placement of the graph (on_disk is)")?;
    if ef_construct.is_some_and(|ef| ef < 4) {
        return Err(invalid("Validation error in body: [hnsw_config.ef_construct: must be 4 or larger]"));
    }
    Ok(HnswSettings { m, ef_construct, full_scan_threshold, max_indexing_threads, on_disk, payload_m })
}

fn optimizers(config: OptimizersConfigDiff) -> Result<OptimizerSettings, Status> {
    let OptimizersConfigDiff {
        deleted_threshold,
        vacuum_min_vector_number,
        default_segment_number,
        max_segment_size,
        memmap_threshold,
        indexing_threshold,
        flush_interval_sec,
        deprecated_max_optimization_threads,
        max_optimization_threads,
        prevent_unoptimized,
    } = config;
    reject_if(memmap_threshold.is_some(), "optimizers_config.memmap_threshold")?;
    reject_if(flush_interval_sec.is_some(), "optimizers_config.flush_interval_sec")?;
    let threads = deprecated_max_optimization_threads.is_some() || max_optimization_threads.is_some();
    reject_if(threads, "optimizers_config.max_optimization_threads")?;
    reject_if(prevent_unoptimized == Some(true), "optimizers_config.prevent_unoptimized")?;
    Ok(OptimizerSettings {
        deleted_threshold,
        vacuum_min_vector_number,
        default_segment_number,
        max_segment_size,
        indexing_threshold,
    })
}

fn quantization(config: QuantizationConfig) -> Result<engine::QuantizationConfig, Status> {
    match config.quantization {
        Some(Quantization::Scalar(scalar)) => self::scalar(scalar),
        Some(Quantization::Binary(binary)) => self::binary(binary),
        Some(Quantization::Product(_)) => Err(unsupported("product quantization")),
        Some(Quantization::Turboquant(_)) => Err(unsupported("turbo quantization")),
        None => Err(invalid("Unable to convert quantization config")),
    }
}

fn scalar(config: ScalarQuantization) -> Result<engine::QuantizationConfig, Status> {
    let ScalarQuantization { r#type, quantile, always_ram, memory } = config;
    reject_if(memory.is_some(), "memory placement of quantized vectors (always_ram is)")?;
    if QuantizationType::try_from(r#type) != Ok(QuantizationType::Int8) {
        return Err(invalid("Unknown quantization type"));
    }
    let r#type = engine::ScalarType::Int8;
    Ok(engine::ScalarQuantizationConfig { r#type, quantile, always_ram }.into())
}

fn binary(config: BinaryQuantization) -> Result<engine::QuantizationConfig, Status> {
    let BinaryQuantization { always_ram, encoding, query_encoding, memory } = config;
    reject_if(memory.is_some(), "memory placement of quantized vectors (always_ram is)")?;
    let encoding = encoding.map(|encoding| match BinaryQuantizationEncoding::try_from(encoding) {
        Ok(BinaryQuantizationEncoding::OneBit) => Ok(engine::BinaryQuantizationEncoding::OneBit),
        Ok(BinaryQuantizationEncoding::TwoBits) => Ok(engine::BinaryQuantizationEncoding::TwoBits),
        Ok(BinaryQuantizationEncoding::OneAndHalfBits) => {
            Ok(engine::BinaryQuantizationEncoding::OneAndHalfBits)
        }
        Err(_) => Err(invalid("Unknown binary quantization encoding")),
    });
    let config = engine::BinaryQuantizationConfig {
        always_ram,
        encoding: encoding.transpose()?,
        query_encoding: query_encoding.map(self::query_encoding).transpose()?,
    };
    Ok(config.into())
}

fn query_encoding(
    encoding: BinaryQuantizationQueryEncoding,
) -> Result<engine::BinaryQuantizationQueryEncoding, Status> {
    use binary_quantization_query_encoding::Setting;
    let Some(Variant::Setting(setting)) = encoding.variant else {
        return Err(invalid("Unknown binary quantization query encoding"));
    };
    match Setting::try_from(setting) {
        Ok(Setting::Default) => Ok(engine::BinaryQuantizationQueryEncoding::Default),
        Ok(Setting::Binary) => Ok(engine::BinaryQuantizationQueryEncoding::Binary),
        Ok(Setting::Scalar4Bits) => Ok(engine::BinaryQuantizationQueryEncoding::Scalar4Bits),
        Ok(Setting::Scalar8Bits) => Ok(engine::BinaryQuantizationQueryEncoding::Scalar8Bits),
        Err(_) => Err(invalid("Unknown binary quantization query encoding")),
    }
}
