//! Reads of points.

use std::time::Instant;

use qdrant_client::qdrant::{
    CountPoints, CountResponse, CountResult, GetPoints, GetResponse, QueryPoints, QueryResponse,
    ScrollPoints, ScrollResponse,
};
use qdrant_edge::{CountRequest, ScrollRequest, WithPayloadInterface};
use tonic::Status;

use super::{Service, find};
use crate::convert::{filter, id, point, query};
use crate::error::Problem;
use crate::reject::{invalid, reject_if};
use crate::settings::count;

/// The limit of a scroll that names none, as in a Qdrant server.
const USUAL_PAGE: u32 = 10;

// All reads ignore the read consistency, because there is a single copy of the data, and `timeout`, because the
// deadline of the client applies.
impl Service {
    pub(super) async fn answer_get(&self, request: GetPoints, began: Instant) -> Result<GetResponse, Status> {
        let GetPoints {
            collection_name,
            ids,
            with_payload,
            with_vectors,
            read_consistency: _,
            shard_key_selector,
            timeout: _,
        } = request;
        reject_if(shard_key_selector.is_some(), "shard keys")?;
        let ids = id::ids(ids)?;
        let with_payload = point::with_payload(with_payload)?.unwrap_or(WithPayloadInterface::Bool(true));
        let with_vectors = point::with_vectors(with_vectors)?;
        let work = move |catalog: &_| {
            let collection = find(catalog, &collection_name)?;
            let records = collection.shard().retrieve(&ids, Some(with_payload), Some(with_vectors));
            Ok(records.map_err(Problem::from)?.into_iter().map(point::retrieved).collect())
        };
        let result = self.read(work).await?;
        Ok(GetResponse { result, time: began.elapsed().as_secs_f64(), usage: None })
    }

    pub(super) async fn answer_scroll(
        &self,
        request: ScrollPoints,
        began: Instant,
    ) -> Result<ScrollResponse, Status> {
        let ScrollPoints {
            collection_name,
            filter,
            offset,
            limit,
            with_payload,
            with_vectors,
            read_consistency: _,
            shard_key_selector,
            order_by,
            timeout: _,
        } = request;
        reject_if(shard_key_selector.is_some(), "shard keys")?;
        reject_if(order_by.is_some(), "scrolling in an order other than by id")?;
        let limit = limit.unwrap_or(USUAL_PAGE);
        if limit == 0 {
            return Err(invalid("Validation error in body: [limit: value 0 invalid, must be 1 or larger]"));
        }
        let page = ScrollRequest {
            offset: offset.map(id::id).transpose()?,
            limit: Some(count(limit.into())),
            filter: filter.map(filter::filter).transpose()?,
            with_payload: Some(
                point::with_payload(with_payload)?.unwrap_or(WithPayloadInterface::Bool(true)),
            ),
            with_vector: point::with_vectors(with_vectors)?,
            order_by: None,
        };
        let work = move |catalog: &_| {
            let collection = find(catalog, &collection_name)?;
            let (records, next) = collection.shard().scroll(page).map_err(Problem::from)?;
            Ok((records.into_iter().map(point::retrieved).collect(), next.map(id::answered)))
        };
        let (result, next_page_offset) = self.read(work).await?;
        Ok(ScrollResponse { next_page_offset, result, time: began.elapsed().as_secs_f64(), usage: None })
    }

    pub(super) async fn answer_count(
        &self,
        request: CountPoints,
        began: Instant,
    ) -> Result<CountResponse, Status> {
        let CountPoints {
            collection_name,
            filter,
            exact,
            read_consistency: _,
            shard_key_selector,
            timeout: _,
        } = request;
        reject_if(shard_key_selector.is_some(), "shard keys")?;
        let wanted =
            CountRequest { filter: filter.map(filter::filter).transpose()?, exact: exact.unwrap_or(true) };
        let work = move |catalog: &_| {
            let counted = find(catalog, &collection_name)?.shard().count(wanted).map_err(Problem::from)?;
            Ok(CountResult { count: u64::try_from(counted).unwrap_or(u64::MAX) })
        };
        let result = Some(self.read(work).await?);
        Ok(CountResponse { result, time: began.elapsed().as_secs_f64(), usage: None })
    }

    pub(super) async fn answer_query(
        &self,
        mut request: QueryPoints,
        began: Instant,
    ) -> Result<QueryResponse, Status> {
        let name = std::mem::take(&mut request.collection_name);
        let work = move |catalog: &_| {
            let collection = find(catalog, &name)?;
            let asked = query::query(request, count(collection.settings.vector.size))?;
            let points = collection.shard().query(asked.request).map_err(Problem::from)?;
            Ok(points.into_iter().skip(asked.skip).map(point::scored).collect())
        };
        let result = self.read(work).await?;
        Ok(QueryResponse { result, time: began.elapsed().as_secs_f64(), usage: None })
    }
}
