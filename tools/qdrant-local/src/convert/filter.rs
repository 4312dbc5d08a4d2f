//! Filters.

use chrono::{DateTime, Utc};
use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::{
    Condition, DatetimeRange, FieldCondition, Filter, HasIdCondition, IsEmptyCondition, IsNullCondition,
    Match, MinShould, NestedCondition, Range, ValuesCount,
};
use qdrant_edge as engine;
use qdrant_edge::external::ordered_float::OrderedFloat;
use tonic::Status;

use crate::convert::id;
use crate::reject::{invalid, reject_if, unsupported};
use crate::settings::count;

/// The maximum nesting depth of conditions, which the engine evaluates recursively.
const DEEPEST: usize = 32;

/// The filter of the engine.
pub(crate) fn filter(filter: Filter) -> Result<engine::Filter, Status> {
    nested_filter(filter, 0)
}

fn nested_filter(filter: Filter, depth: usize) -> Result<engine::Filter, Status> {
    if depth > DEEPEST {
        return Err(invalid(format!("Wrong input: filters are nested more than {DEEPEST} levels deep")));
    }
    let Filter { should, must, must_not, min_should } = filter;
    let min_should = min_should.map(|MinShould { conditions: within, min_count }| {
        let conditions = within.into_iter().map(|one| condition(one, depth)).collect::<Result<_, _>>()?;
        Ok::<_, Status>(engine::MinShould { conditions, min_count: count(min_count) })
    });
    Ok(engine::Filter {
        should: conditions(should, depth)?,
        must: conditions(must, depth)?,
        must_not: conditions(must_not, depth)?,
        min_should: min_should.transpose()?,
    })
}

fn conditions(listed: Vec<Condition>, depth: usize) -> Result<Option<Vec<engine::Condition>>, Status> {
    if listed.is_empty() {
        return Ok(None);
    }
    listed.into_iter().map(|one| condition(one, depth)).collect::<Result<_, _>>().map(Some)
}

fn condition(condition: Condition, depth: usize) -> Result<engine::Condition, Status> {
    match condition.condition_one_of {
        Some(ConditionOneOf::Field(condition)) => Ok(engine::Condition::Field(field(condition)?)),
        Some(ConditionOneOf::Filter(filter)) => {
            Ok(engine::Condition::Filter(nested_filter(filter, depth + 1)?))
        }
        Some(ConditionOneOf::HasId(HasIdCondition { has_id })) => {
            let ids = has_id.into_iter().map(id::id).collect::<Result<engine::HasIdCondition, _>>()?;
            Ok(engine::Condition::HasId(ids))
        }
        Some(ConditionOneOf::IsEmpty(IsEmptyCondition { key })) => {
            Ok(engine::Condition::IsEmpty(engine::IsEmptyCondition::from(path(&key)?)))
        }
        Some(ConditionOneOf::IsNull(IsNullCondition { key })) => {
            Ok(engine::Condition::IsNull(engine::IsNullCondition::from(path(&key)?)))
        }
        Some(ConditionOneOf::Nested(NestedCondition { key, filter })) => {
            let filter = filter.ok_or_else(|| invalid("Malformed Nested condition: no filter"))?;
            Ok(engine::Condition::new_nested(path(&key)?, nested_filter(filter, depth + 1)?))
        }
        Some(ConditionOneOf::HasVector(_)) => Err(unsupported("the condition has_vector")),
        Some(ConditionOneOf::Slice(_)) => Err(unsupported("the condition slice")),
        None => Err(invalid("Malformed Condition type")),
    }
}

fn field(condition: FieldCondition) -> Result<engine::FieldCondition, Status> {
    let FieldCondition {
        key,
        r#match,
        range,
        geo_bounding_box,
        geo_radius,
        values_count,
        geo_polygon,
        datetime_range,
        is_empty,
        is_null,
    } = condition;
    let geo = geo_bounding_box.is_some() || geo_radius.is_some() || geo_polygon.is_some();
    reject_if(geo, "geographic conditions")?;
    let range = match (range, datetime_range) {
        (Some(_), Some(_)) => return Err(invalid("Malformed field condition: two ranges")),
        (Some(range), None) => Some(engine::RangeInterface::Float(self::range(range))),
        (None, Some(range)) => Some(engine::RangeInterface::DateTime(times(range)?)),
        (None, None) => None,
    };
    let nothing = r#match.is_none()
        && range.is_none()
        && values_count.is_none()
        && is_empty.is_none()
        && is_null.is_none();
    if nothing {
        return Err(invalid(format!("Malformed field condition: no condition for {key}")));
    }
    Ok(engine::FieldCondition {
        key: path(&key)?,
        r#match: r#match.map(matching).transpose()?,
        range,
        geo_bounding_box: None,
        geo_radius: None,
        geo_polygon: None,
        values_count: values_count.map(counted),
        is_empty,
        is_null,
    })
}

fn matching(wanted: Match) -> Result<engine::Match, Status> {
    let value = |value| engine::Match::Value(engine::MatchValue { value });
    let any = |any| engine::Match::Any(engine::MatchAny { any });
    let except = |except| engine::Match::Except(engine::MatchExcept { except });
    match wanted.match_value {
        Some(MatchValue::Keyword(keyword)) => Ok(value(engine::ValueVariants::String(keyword))),
        Some(MatchValue::Integer(integer)) => Ok(value(engine::ValueVariants::Integer(integer))),
        Some(MatchValue::Boolean(boolean)) => Ok(value(engine::ValueVariants::Bool(boolean))),
        Some(MatchValue::Keywords(list)) => {
            Ok(any(engine::AnyVariants::Strings(list.strings.into_iter().collect())))
        }
        Some(MatchValue::Integers(list)) => {
            Ok(any(engine::AnyVariants::Integers(list.integers.into_iter().collect())))
        }
        Some(MatchValue::ExceptKeywords(list)) => {
            Ok(except(engine::AnyVariants::Strings(list.strings.into_iter().collect())))
        }
        Some(MatchValue::ExceptIntegers(list)) => {
            Ok(except(engine::AnyVariants::Integers(list.integers.into_iter().collect())))
        }
        Some(MatchValue::Text(_)) => Err(unsupported("the match text")),
        Some(MatchValue::Phrase(_)) => Err(unsupported("the match phrase")),
        Some(MatchValue::TextAny(_)) => Err(unsupported("the match text_any")),
        Some(MatchValue::Prefix(_)) => Err(unsupported("the match prefix")),
        Some(MatchValue::Substring(_)) => Err(unsupported("the match substring")),
        None => Err(invalid("Malformed Match condition")),
    }
}

fn range(range: Range) -> engine::Range<OrderedFloat<f64>> {
    let Range { lt, gt, gte, lte } = range;
    engine::Range {
        lt: lt.map(OrderedFloat),
        gt: gt.map(OrderedFloat),
        gte: gte.map(OrderedFloat),
        lte: lte.map(OrderedFloat),
    }
}

fn times(range: DatetimeRange) -> Result<engine::Range<engine::DateTimeWrapper>, Status> {
    let DatetimeRange { lt, gt, gte, lte } = range;
    let at = |seconds: i64, nanos: i32| {
        u32::try_from(nanos)
            .ok()
            .and_then(|nanos| DateTime::<Utc>::from_timestamp(seconds, nanos))
            .map(engine::DateTimeWrapper)
            .ok_or_else(|| invalid(format!("Unable to parse timestamp: {seconds} seconds, {nanos} nanos")))
    };
    Ok(engine::Range {
        lt: lt.map(|time| at(time.seconds, time.nanos)).transpose()?,
        gt: gt.map(|time| at(time.seconds, time.nanos)).transpose()?,
        gte: gte.map(|time| at(time.seconds, time.nanos)).transpose()?,
        lte: lte.map(|time| at(time.seconds, time.nanos)).transpose()?,
    })
}

fn counted(values: ValuesCount) -> engine::ValuesCount {
    let ValuesCount { lt, gt, gte, lte } = values;
    engine::ValuesCount { lt: lt.map(count), gt: gt.map(count), gte: gte.map(count), lte: lte.map(count) }
}

/// The path of a value in a payload.
pub(crate) fn path(key: &str) -> Result<engine::JsonPath, Status> {
    key.parse().map_err(|()| invalid(format!("Invalid json path: '{key}'")))
}
