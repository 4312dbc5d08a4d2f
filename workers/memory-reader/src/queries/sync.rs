//! `sync.status` and `sync.history`: syncs between sessions, and what they did to keys.

use contract::{Malformed, SyncHistory, SyncHistoryPage, SyncPage, SyncStatusRead};

use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

#[derive(Debug)]
pub(crate) struct Status;

impl ValidatedQuery for Status {
    type Query = SyncStatusRead;

    fn validate(_: SyncStatusRead) -> Result<Self, Malformed> {
        Ok(Self)
    }

    async fn answer(self, _: &mut QueryContext<'_>) -> Result<Answered<SyncPage>, QueryFailure> {
        Ok(Answered::new(SyncPage { syncs: Vec::new(), next_cursor: None }, "cross_service_memory_sync", 0))
    }
}

#[derive(Debug)]
pub(crate) struct History;

impl ValidatedQuery for History {
    type Query = SyncHistory;

    fn validate(_: SyncHistory) -> Result<Self, Malformed> {
        Ok(Self)
    }

    async fn answer(self, _: &mut QueryContext<'_>) -> Result<Answered<SyncHistoryPage>, QueryFailure> {
        Ok(Answered::new(SyncHistoryPage { changes: Vec::new(), next_cursor: None }, "sync_changes", 0))
    }
}
