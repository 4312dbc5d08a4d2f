//! The receipts that vouch for what the audit trail excuses by erasures.

use std::collections::HashMap;

use ::archive::ArchiveError;
use audit::{AuditError, Vouch, Voucher};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use store::Fault;
use trust::PublicKey;
use trust::text::from_hex;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::receipt::{self, Receipt};

/// The receipts that the main database has, and those at `privacy.receipt_url`, which has also those of persons who were erased again.
#[derive(Clone, Copy, Debug)]
pub struct Receipts<'a> {
    /// Where receipts are.
    pub settings: &'a Settings,
    /// The keys that sign them.
    pub keys: &'a [PublicKey],
}

impl Vouch for Receipts<'_> {
    fn vouch<'a>(
        &'a self,
        connection: &'a mut AsyncPgConnection,
        erasures: &'a [Uuid],
    ) -> BoxFuture<'a, Result<HashMap<Uuid, Voucher>, AuditError>> {
        async move {
            let mut vouchers = HashMap::new();
            for erasure in erasures {
                let voucher = self.voucher(connection, *erasure).await?;
                vouchers.extend(voucher.map(|voucher| (*erasure, voucher)));
            }
            Ok(vouchers)
        }
        .boxed()
    }
}

#[derive(QueryableByName)]
struct Known {
    #[diesel(sql_type = Nullable<Text>)]
    receipt: Option<String>,
    #[diesel(sql_type = Bool)]
    under_way: bool,
}

impl Receipts<'_> {
    async fn voucher(
        &self,
        connection: &mut AsyncPgConnection,
        erasure: Uuid,
    ) -> Result<Option<Voucher>, AuditError> {
        // From the step `keys` on, the tombstone is there instead of the fence.
        const KNOWN: &str = "
            SELECT (SELECT u.receipt FROM sec.erased_users u WHERE u.erasure = $1) AS receipt,
                EXISTS (SELECT FROM public.privacy_requests r
                    WHERE r.id = $1 AND r.request_type IN ('erase', 'anonymise') AND r.request_status = 'in_progress'
                        AND (EXISTS (SELECT FROM sec.fenced_users f
                                WHERE f.request_id = r.id AND f.user_id = r.user_id AND NOT f.may_be_cancelled)
                            OR EXISTS (SELECT FROM sec.erased_users u WHERE u.erasure = r.id))) AS under_way";
        let known = diesel::sql_query(KNOWN).bind::<SqlUuid, _>(erasure).get_result::<Known>(connection);
        let Known { receipt, under_way } = known.await.map_err(Fault::from)?;
        let stored = receipt.and_then(|text| Receipt::read(text.as_bytes(), self.keys).ok());
        let receipt = match stored.filter(|receipt| receipt.body.erasure == erasure) {
            Some(receipt) => Some(receipt),
            None if under_way => return Ok(Some(Voucher::UnderWay)),
            None => self.filed(erasure).await?,
        };
        Ok(receipt.and_then(|receipt| voucher_of(&receipt)))
    }

    /// The receipt at the target. None if there is none, or no target.
    async fn filed(&self, erasure: Uuid) -> Result<Option<Receipt>, AuditError> {
        if self.settings.privacy.receipt_url.is_none() {
            return Ok(None);
        }
        let failed = |error: PrivacyError| AuditError::Receipts { problem: error.to_string() };
        let target = receipt::target(self.settings, None).map_err(failed)?;
        match target.get_receipt(erasure).await {
            // One that is not genuine proves nothing.
            Ok(content) => {
                Ok(Receipt::read(&content, self.keys).ok().filter(|read| read.body.erasure == erasure))
            }
            Err(ArchiveError::Missing(_)) => Ok(None),
            Err(error) => Err(failed(receipt::away(error))),
        }
    }
}

fn voucher_of(receipt: &Receipt) -> Option<Voucher> {
    let stated = &receipt.body.statements;
    let roots = from_hex(&stated.roots)?.try_into().ok()?;
    Some(Voucher::Receipt { statements: stated.count, roots })
}
