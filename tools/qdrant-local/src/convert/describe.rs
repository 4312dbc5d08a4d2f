//! Information about a collection.

use qdrant_client::qdrant::binary_quantization_query_encoding::{Setting, Variant};
use qdrant_client::qdrant::quantization_config::Quantization;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    BinaryQuantization, BinaryQuantizationEncoding, BinaryQuantizationQueryEncoding, CollectionConfig,
    CollectionInfo, CollectionParams, CollectionStatus, Distance, HnswConfigDiff, OptimizerStatus,
    OptimizersConfigDiff, QuantizationConfig, QuantizationType, ScalarQuantization, VectorParams,
    VectorsConfig,
};
use qdrant_edge as engine;

use crate::collection::Collection;
use crate::convert::index;
use crate::settings::{
    DELETED_THRESHOLD, EF_CONSTRUCT, FULL_SCAN_THRESHOLD, HnswSettings, INDEXING_THRESHOLD, M,
    OptimizerSettings, Settings, VACUUM_MIN_VECTORS, VectorSettings,
};

/// The state of the collection.
pub(crate) fn collection(collection: &Collection) -> CollectionInfo {
    let info = collection.shard().info();
    let failure = collection.failure();
    let status = match (&failure, collection.is_settled(&info)) {
        (Some(_), _) => CollectionStatus::Red,
        (None, true) => CollectionStatus::Green,
        (None, false) => CollectionStatus::Yellow,
    };
    let engine::ShardInfo { segments_count, points_count, indexed_vectors_count, payload_schema } = info;
    let optimizer = OptimizerStatus { ok: failure.is_none(), error: failure.unwrap_or_default() };
    CollectionInfo {
        status: status.into(),
        optimizer_status: Some(optimizer),
        segments_count: number(segments_count),
        config: Some(config(&collection.settings)),
        payload_schema: payload_schema
            .into_iter()
            .map(|(field, schema)| (field.to_string(), index::described(schema)))
            .collect(),
        points_count: Some(number(points_count)),
        indexed_vectors_count: Some(number(indexed_vectors_count)),
        ..CollectionInfo::default()
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn config(settings: &Settings) -> CollectionConfig {
    let Settings { vector, hnsw, quantization, on_disk_payload, optimizers } = settings;
    let params = CollectionParams {
        shard_number: 1,
        on_disk_payload: *on_disk_payload,
        vectors_config: Some(VectorsConfig { config: Some(Config::Params(self::vector(vector))) }),
        replication_factor: Some(1),
        write_consistency_factor: Some(1),
        ..CollectionParams::default()
    };
    CollectionConfig {
        params: Some(params),
        hnsw_config: Some(self::hnsw(&hnsw.or_defaults(&defaults()))),
        optimizer_config: Some(self::optimizers(optimizers)),
        quantization_config: quantization.as_ref().and_then(self::quantization),
        ..CollectionConfig::default()
    }
}

/// The graph settings of a collection are described in full, as a Qdrant server does.
fn defaults() -> HnswSettings {
    HnswSettings {
        m: Some(M),
        ef_construct: Some(EF_CONSTRUCT),
        full_scan_threshold: Some(FULL_SCAN_THRESHOLD),
        max_indexing_threads: Some(0),
        on_disk: Some(false),
        payload_m: None,
    }
}

fn vector(settings: &VectorSettings) -> VectorParams {
    let VectorSettings { size, distance, on_disk, hnsw, quantization } = settings;
    let distance = match distance {
        engine::Distance::Cosine => Distance::Cosine,
        engine::Distance::Euclid => Distance::Euclid,
        engine::Distance::Dot => Distance::Dot,
        engine::Distance::Manhattan => Distance::Manhattan,
    };
    VectorParams {
        size: *size,
        distance: distance.into(),
        hnsw_config: hnsw.as_ref().map(self::hnsw),
        quantization_config: quantization.as_ref().and_then(self::quantization),
        on_disk: *on_disk,
        ..VectorParams::default()
    }
}

fn hnsw(settings: &HnswSettings) -> HnswConfigDiff {
    let HnswSettings { m, ef_construct, full_scan_threshold, max_indexing_threads, on_disk, payload_m } =
        *settings;
    HnswConfigDiff {
        m,
        ef_construct,
        full_scan_threshold,
        max_indexing_threads,
        on_disk,
        payload_m,
        ..HnswConfigDiff::default()
    }
}

fn optimizers(settings: &OptimizerSettings) -> OptimizersConfigDiff {
    let OptimizerSettings {
        deleted_threshold,
        vacuum_min_vector_number,
        default_segment_number,
        max_segment_size,
        indexing_threshold,
    } = *settings;
    OptimizersConfigDiff {
        deleted_threshold: Some(deleted_threshold.unwrap_or(DELETED_THRESHOLD)),
        vacuum_min_vector_number: Some(vacuum_min_vector_number.unwrap_or(VACUUM_MIN_VECTORS)),
        default_segment_number: Some(default_segment_number.unwrap_or(0)),
        max_segment_size,
        indexing_threshold: Some(indexing_threshold.unwrap_or(INDEXING_THRESHOLD)),
        ..OptimizersConfigDiff::default()
    }
}

fn quantization(config: &engine::QuantizationConfig) -> Option<QuantizationConfig> {
    let quantization = match config {
        engine::QuantizationConfig::Scalar(config) => {
            let engine::ScalarQuantizationConfig { r#type, quantile, always_ram } = config.scalar;
            let r#type = match r#type {
                engine::ScalarType::Int8 => QuantizationType::Int8.into(),
            };
            Quantization::Scalar(ScalarQuantization { r#type, quantile, always_ram, ..Default::default() })
        }
        engine::QuantizationConfig::Binary(config) => {
            let engine::BinaryQuantizationConfig { always_ram, encoding, query_encoding } = config.binary;
            Quantization::Binary(BinaryQuantization {
                always_ram,
                encoding: encoding.map(|one| self::encoding(one).into()),
                query_encoding: query_encoding.map(self::query_encoding),
                ..Default::default()
            })
        }
        // Such collections cannot be created.
        engine::QuantizationConfig::Product(_) | engine::QuantizationConfig::Turbo(_) => return None,
    };
    Some(QuantizationConfig { quantization: Some(quantization) })
}

fn encoding(encoding: engine::BinaryQuantizationEncoding) -> BinaryQuantizationEncoding {
    match encoding {
        engine::BinaryQuantizationEncoding::OneBit => BinaryQuantizationEncoding::OneBit,
        engine::BinaryQuantizationEncoding::TwoBits => BinaryQuantizationEncoding::TwoBits,
        engine::BinaryQuantizationEncoding::OneAndHalfBits => BinaryQuantizationEncoding::OneAndHalfBits,
    }
}

fn query_encoding(encoding: engine::BinaryQuantizationQueryEncoding) -> BinaryQuantizationQueryEncoding {
    let setting = match encoding {
        engine::BinaryQuantizationQueryEncoding::Default => Setting::Default,
        engine::BinaryQuantizationQueryEncoding::Binary => Setting::Binary,
        engine::BinaryQuantizationQueryEncoding::Scalar4Bits => Setting::Scalar4Bits,
        engine::BinaryQuantizationQueryEncoding::Scalar8Bits => Setting::Scalar8Bits,
    };
    BinaryQuantizationQueryEncoding { variant: Some(Variant::Setting(setting.into())) }
}
