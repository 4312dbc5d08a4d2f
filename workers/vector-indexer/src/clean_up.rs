//! After the commit: points that a request has made obsolete are deleted.

use std::sync::atomic::Ordering;

use ::store::{Fault, security};
use contract::UserId;
use diesel_async::AsyncConnection;
use runtime::Ended;
use uuid::Uuid;
use vectors::Superseded;

use crate::prepare::{Item, Prepared, Ready, fault, written};
use crate::store::when_written;
use crate::{Parted, VectorIndexer};

impl VectorIndexer {
    pub(crate) async fn clean_up_after(
        &self,
        ended: &[Ended<'_, Parted>],
        prepared: &Prepared,
    ) -> Result<(), Fault> {
        let (mut superseded, mut elsewhere) = (Vec::new(), Vec::new());
        for Ended { message, committed } in ended {
            let own = written(message);
            match prepared.messages.get(&message.event_id) {
                Some(Ready::Index(items)) if !committed => {
                    superseded.extend(items.iter().map(|item| obsolete(item, own..own + 1)));
                }
                Some(Ready::Index(items) | Ready::Remove(items) | Ready::Before(items)) if *committed => {
                    let floor = |item: &Item| item.floor.load(Ordering::Relaxed);
                    let some = items.iter().filter(|item| floor(item) > 0);
                    superseded.extend(some.map(|item| obsolete(item, 0..floor(item))));
                    let others = items.iter().filter(|item| is_elsewhere(item));
                    elsewhere.extend(others.map(|item| (message.subject.user_id, item, own)));
                }
                Some(
                    Ready::Index(_)
                    | Ready::Remove(_)
                    | Ready::Before(_)
                    | Ready::Unmet(_)
                    | Ready::Refused(_)
                    | Ready::Denied(_),
                )
                | None => {}
            }
        }
        superseded.extend(self.left_over(&elsewhere, prepared).await?);
        if superseded.is_empty() {
            return Ok(());
        }
        for collection in &prepared.collections {
            let deleted = self.vectors.delete_superseded(&collection.collection_name, &superseded).await;
            deleted.map_err(fault)?;
        }
        Ok(())
    }

    /// The points of messages whose request another message has carried out meanwhile: unless it was this very message, at
    /// another worker, its row does not name them.
    async fn left_over(
        &self,
        elsewhere: &[(UserId, &Item, i64)],
        prepared: &Prepared,
    ) -> Result<Vec<Superseded>, Fault> {
        if elsewhere.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<(i32, Uuid)> =
            elsewhere.iter().map(|(user, item, _)| (user.get(), item.memory)).collect();
        let grants: Vec<&str> = prepared.grants.iter().map(String::as_str).collect();
        let mut connection = ::store::lend(&self.pool).await?;
        let rows = connection
            .transaction(async |connection| {
                security::open_context(connection, &grants).await?;
                when_written(connection, &keys).await
            })
            .await;
        if rows.is_err() {
            ::store::discard(connection);
        }
        let rows = rows?;
        let named = |user: &UserId, item: &Item, own: i64| rows.get(&(user.get(), item.memory)) == Some(&own);
        let left = elsewhere.iter().filter(|(user, item, own)| !named(user, item, *own));
        Ok(left.map(|(_, item, own)| obsolete(item, *own..own + 1)).collect())
    }
}

/// Whether points were stored for it and no transaction of this worker wrote its row.
fn is_elsewhere(item: &Item) -> bool {
    item.points.is_some() && !item.is_written.load(Ordering::Relaxed)
}

fn obsolete(item: &Item, written: std::ops::Range<i64>) -> Superseded {
    Superseded { tenant: item.tenant.clone(), memory: item.memory, written }
}
