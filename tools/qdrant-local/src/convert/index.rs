//! Indexes of payload fields.

use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::{
    BoolIndexParams, DatetimeIndexParams, FieldType, FloatIndexParams, IntegerIndexParams,
    KeywordIndexParams, PayloadIndexParams, PayloadSchemaInfo, PayloadSchemaType, UuidIndexParams,
};
use qdrant_edge as engine;
use qdrant_edge::{PayloadFieldSchema, PayloadSchemaParams};
use tonic::Status;

use crate::reject::{invalid, reject_if, unsupported};

/// The requested index, as a type of the engine.
pub(crate) fn schema(
    field_type: Option<i32>,
    params: Option<PayloadIndexParams>,
) -> Result<PayloadFieldSchema, Status> {
    let named = field_type.map(|number| match FieldType::try_from(number) {
        Ok(FieldType::Keyword) => Ok(engine::PayloadSchemaType::Keyword),
        Ok(FieldType::Integer) => Ok(engine::PayloadSchemaType::Integer),
        Ok(FieldType::Float) => Ok(engine::PayloadSchemaType::Float),
        Ok(FieldType::Bool) => Ok(engine::PayloadSchemaType::Bool),
        Ok(FieldType::Datetime) => Ok(engine::PayloadSchemaType::Datetime),
        Ok(FieldType::Uuid) => Ok(engine::PayloadSchemaType::Uuid),
        Ok(FieldType::Geo) => Err(unsupported("geographic indexes")),
        Ok(FieldType::Text) => Err(unsupported("text indexes")),
        Err(_) => Err(invalid("cannot convert field_type")),
    });
    let named = named.transpose()?;
    let detailed = params.and_then(|params| params.index_params).map(self::params).transpose()?;
    match (named, detailed) {
        (Some(named), Some(detailed)) if detailed.kind() != named => {
            Err(invalid("field_type and field_index_params do not match"))
        }
        (_, Some(detailed)) => Ok(PayloadFieldSchema::FieldParams(detailed)),
        (Some(named), None) => Ok(PayloadFieldSchema::FieldType(named)),
        (None, None) => Err(invalid("field_type is missing")),
    }
}

fn params(params: IndexParams) -> Result<PayloadSchemaParams, Status> {
    match params {
        IndexParams::KeywordIndexParams(params) => keyword(params),
        IndexParams::IntegerIndexParams(params) => integer(params),
        IndexParams::FloatIndexParams(params) => float(params),
        IndexParams::BoolIndexParams(params) => boolean(params),
        IndexParams::DatetimeIndexParams(params) => datetime(params),
        IndexParams::UuidIndexParams(params) => uuid(params),
        IndexParams::GeoIndexParams(_) => Err(unsupported("geographic indexes")),
        IndexParams::TextIndexParams(_) => Err(unsupported("text indexes")),
    }
}

fn refuse_new(memory: Option<i32>, nested: Option<&String>) -> Result<(), Status> {
    reject_if(memory.is_some(), "memory placement of indexes (on_disk is)")?;
    reject_if(nested.is_some(), "nested indexes")
}

fn keyword(params: KeywordIndexParams) -> Result<PayloadSchemaParams, Status> {
    let KeywordIndexParams { is_tenant, on_disk, enable_hnsw, prefix, memory, nested } = params;
    refuse_new(memory, nested.as_ref())?;
    reject_if(prefix.is_some(), "prefix indexes")?;
    let r#type = Default::default();
    Ok(PayloadSchemaParams::Keyword(engine::KeywordIndexParams { r#type, is_tenant, on_disk, enable_hnsw }))
}

fn integer(params: IntegerIndexParams) -> Result<PayloadSchemaParams, Status> {
    let IntegerIndexParams { lookup, range, is_principal, on_disk, enable_hnsw, memory, nested } = params;
    refuse_new(memory, nested.as_ref())?;
    if lookup == Some(false) && range == Some(false) {
        return Err(invalid(
            "Validation error in body: the \"lookup\" and \"range\" capabilities can't be both disabled",
        ));
    }
    Ok(PayloadSchemaParams::Integer(engine::IntegerIndexParams {
        r#type: Default::default(),
        lookup,
        range,
        is_principal,
        on_disk,
        enable_hnsw,
    }))
}

fn float(params: FloatIndexParams) -> Result<PayloadSchemaParams, Status> {
    let FloatIndexParams { on_disk, is_principal, enable_hnsw, memory, nested } = params;
    refuse_new(memory, nested.as_ref())?;
    let r#type = Default::default();
    Ok(PayloadSchemaParams::Float(engine::FloatIndexParams { r#type, is_principal, on_disk, enable_hnsw }))
}

fn boolean(params: BoolIndexParams) -> Result<PayloadSchemaParams, Status> {
    let BoolIndexParams { on_disk, enable_hnsw, memory, nested } = params;
    refuse_new(memory, nested.as_ref())?;
    Ok(PayloadSchemaParams::Bool(engine::BoolIndexParams {
        r#type: Default::default(),
        on_disk,
        enable_hnsw,
    }))
}

fn datetime(params: DatetimeIndexParams) -> Result<PayloadSchemaParams, Status> {
    let DatetimeIndexParams { on_disk, is_principal, enable_hnsw, memory, nested } = params;
    refuse_new(memory, nested.as_ref())?;
    let r#type = Default::default();
    Ok(PayloadSchemaParams::Datetime(engine::DatetimeIndexParams {
        r#type,
        is_principal,
        on_disk,
        enable_hnsw,
    }))
}

fn uuid(params: UuidIndexParams) -> Result<PayloadSchemaParams, Status> {
    let UuidIndexParams { is_tenant, on_disk, enable_hnsw, memory, nested } = params;
    refuse_new(memory, nested.as_ref())?;
    let r#type = Default::default();
    Ok(PayloadSchemaParams::Uuid(engine::UuidIndexParams { r#type, is_tenant, on_disk, enable_hnsw }))
}

/// An index in a response.
pub(crate) fn described(index: engine::PayloadIndexInfo) -> PayloadSchemaInfo {
    let engine::PayloadIndexInfo { data_type, params, points } = index;
    let data_type = match data_type {
        engine::PayloadSchemaType::Keyword => PayloadSchemaType::Keyword,
        engine::PayloadSchemaType::Integer => PayloadSchemaType::Integer,
        engine::PayloadSchemaType::Float => PayloadSchemaType::Float,
        engine::PayloadSchemaType::Geo => PayloadSchemaType::Geo,
        engine::PayloadSchemaType::Text => PayloadSchemaType::Text,
        engine::PayloadSchemaType::Bool => PayloadSchemaType::Bool,
        engine::PayloadSchemaType::Datetime => PayloadSchemaType::Datetime,
        engine::PayloadSchemaType::Uuid => PayloadSchemaType::Uuid,
    };
    let params = params.and_then(described_params).map(|one| PayloadIndexParams { index_params: Some(one) });
    PayloadSchemaInfo { data_type: data_type.into(), params, points: u64::try_from(points).ok() }
}

fn described_params(params: PayloadSchemaParams) -> Option<IndexParams> {
    let (memory, nested) = (None, None);
    match params {
        PayloadSchemaParams::Keyword(engine::KeywordIndexParams {
            r#type: _,
            is_tenant,
            on_disk,
            enable_hnsw,
        }) => {
            let params = KeywordIndexParams { is_tenant, on_disk, enable_hnsw, prefix: None, memory, nested };
            Some(IndexParams::KeywordIndexParams(params))
        }
        PayloadSchemaParams::Integer(params) => {
            let engine::IntegerIndexParams { r#type: _, lookup, range, is_principal, on_disk, enable_hnsw } =
                params;
            let params =
                IntegerIndexParams { lookup, range, is_principal, on_disk, enable_hnsw, memory, nested };
            Some(IndexParams::IntegerIndexParams(params))
        }
        PayloadSchemaParams::Float(engine::FloatIndexParams {
            r#type: _,
            is_principal,
            on_disk,
            enable_hnsw,
        }) => {
            let params = FloatIndexParams { on_disk, is_principal, enable_hnsw, memory, nested };
            Some(IndexParams::FloatIndexParams(params))
        }
        PayloadSchemaParams::Bool(engine::BoolIndexParams { r#type: _, on_disk, enable_hnsw }) => {
            Some(IndexParams::BoolIndexParams(BoolIndexParams { on_disk, enable_hnsw, memory, nested }))
        }
        PayloadSchemaParams::Datetime(params) => {
            let engine::DatetimeIndexParams { r#type: _, is_principal, on_disk, enable_hnsw } = params;
            let params = DatetimeIndexParams { on_disk, is_principal, enable_hnsw, memory, nested };
            Some(IndexParams::DatetimeIndexParams(params))
        }
        PayloadSchemaParams::Uuid(engine::UuidIndexParams { r#type: _, is_tenant, on_disk, enable_hnsw }) => {
            let params = UuidIndexParams { is_tenant, on_disk, enable_hnsw, memory, nested };
            Some(IndexParams::UuidIndexParams(params))
        }
        // Such indexes cannot be created.
        PayloadSchemaParams::Geo(_) | PayloadSchemaParams::Text(_) => None,
    }
}
