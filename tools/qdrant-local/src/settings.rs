//! Settings of a collection, as stored in the manifest.

use std::collections::HashMap;

use qdrant_edge::{
    DEFAULT_VECTOR_NAME, Distance, EdgeConfig, EdgeOptimizersConfig, EdgeVectorParams, HnswIndexConfig,
    QuantizationConfig,
};
use serde::{Deserialize, Serialize};

/// The defaults of a Qdrant server and of the engine.
pub(crate) const M: u64 = 16;
pub(crate) const EF_CONSTRUCT: u64 = 100;
pub(crate) const FULL_SCAN_THRESHOLD: u64 = 10_000;
pub(crate) const INDEXING_THRESHOLD: u64 = 10_000;
pub(crate) const DELETED_THRESHOLD: f64 = 0.2;
pub(crate) const VACUUM_MIN_VECTORS: u64 = 1000;

/// The settings with which a collection was created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) vector: VectorSettings,
    pub(crate) hnsw: HnswSettings,
    pub(crate) quantization: Option<QuantizationConfig>,
    pub(crate) on_disk_payload: bool,
    pub(crate) optimizers: OptimizerSettings,
}

/// The settings of the unnamed vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VectorSettings {
    pub(crate) size: u64,
    pub(crate) distance: Distance,
    pub(crate) on_disk: Option<bool>,
    pub(crate) hnsw: Option<HnswSettings>,
    pub(crate) quantization: Option<QuantizationConfig>,
}

/// The settings of the HNSW graph; an absent one has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HnswSettings {
    pub(crate) m: Option<u64>,
    pub(crate) ef_construct: Option<u64>,
    pub(crate) full_scan_threshold: Option<u64>,
    pub(crate) max_indexing_threads: Option<u64>,
    pub(crate) on_disk: Option<bool>,
    pub(crate) payload_m: Option<u64>,
}

/// The settings of the optimizer; an absent one has its default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OptimizerSettings {
    pub(crate) deleted_threshold: Option<f64>,
    pub(crate) vacuum_min_vector_number: Option<u64>,
    pub(crate) default_segment_number: Option<u64>,
    pub(crate) max_segment_size: Option<u64>,
    pub(crate) indexing_threshold: Option<u64>,
}

impl Settings {
    /// The configuration of the engine.
    pub(crate) fn engine_config(&self) -> EdgeConfig {
        let VectorSettings { size, distance, on_disk, hnsw, quantization } = &self.vector;
        let vector = EdgeVectorParams {
            size: count(*size),
            distance: *distance,
            on_disk: *on_disk,
            multivector_config: None,
            datatype: None,
            quantization_config: quantization.clone(),
            hnsw_config: hnsw.as_ref().map(|own| own.or_defaults(&self.hnsw).engine_config()),
        };
        let OptimizerSettings {
            deleted_threshold,
            vacuum_min_vector_number,
            default_segment_number,
            max_segment_size,
            indexing_threshold,
        } = self.optimizers;
        EdgeConfig {
            on_disk_payload: self.on_disk_payload,
            vectors: HashMap::from([(DEFAULT_VECTOR_NAME.to_owned(), vector)]),
            sparse_vectors: HashMap::new(),
            hnsw_config: self.hnsw.engine_config(),
            quantization_config: self.quantization.clone(),
            optimizers: EdgeOptimizersConfig {
                deleted_threshold,
                vacuum_min_vector_number: vacuum_min_vector_number.map(count),
                default_segment_number: default_segment_number.map(count),
                max_segment_size: max_segment_size.map(count),
                indexing_threshold: indexing_threshold.map(count),
                prevent_unoptimized: None,
            },
            wal_options: None,
        }
    }

    /// The number of unindexed points from which the optimizer builds an index.
    pub(crate) fn points_worth_indexing(&self) -> usize {
        match self.optimizers.indexing_threshold.unwrap_or(INDEXING_THRESHOLD) {
            // Zero means never.
            0 => usize::MAX,
            kilobytes => count(kilobytes.saturating_mul(1024).div_ceil(self.vector.size.max(1) * 4)),
        }
    }
}

impl HnswSettings {
    /// These settings, with absent ones taken from the defaults.
    pub(crate) fn or_defaults(&self, defaults: &Self) -> Self {
        Self {
            m: self.m.or(defaults.m),
            ef_construct: self.ef_construct.or(defaults.ef_construct),
            full_scan_threshold: self.full_scan_threshold.or(defaults.full_scan_threshold),
            max_indexing_threads: self.max_indexing_threads.or(defaults.max_indexing_threads),
            on_disk: self.on_disk.or(defaults.on_disk),
            payload_m: self.payload_m.or(defaults.payload_m),
        }
    }

    fn engine_config(&self) -> HnswIndexConfig {
        HnswIndexConfig {
            m: count(self.m.unwrap_or(M)),
            ef_construct: count(self.ef_construct.unwrap_or(EF_CONSTRUCT)),
            full_scan_threshold: count(self.full_scan_threshold.unwrap_or(FULL_SCAN_THRESHOLD)),
            max_indexing_threads: count(self.max_indexing_threads.unwrap_or(0)),
            on_disk: Some(self.on_disk.unwrap_or(false)),
            payload_m: self.payload_m.map(count),
            inline_storage: None,
        }
    }
}

/// A number of the API as the engine expects it.
pub(crate) fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
