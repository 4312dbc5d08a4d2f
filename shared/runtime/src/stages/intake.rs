//! The first three stages: pull, decode, authorize. Messages wait in [`Queues`] between the first and the second, and go
//! on in lanes: batches of light messages in two, and heavy messages beside them. Each lane has a write and a settle stage of
//! its own.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use contract::{DeadLetterClass, RequestSubject};
use store::Pool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use trust::Refusal;

use crate::process::crash::{self, Point};
use crate::process::trust_refresh;
use crate::stages::authorize::{Authorization, Authorizer, Denied};
use crate::stages::decode::{self, Bodies, Decoded};
use crate::stages::disposition::Disposition;
use crate::stages::pull::{Delivery, Puller};
use crate::stages::queues::{LightLane, Queues};
use crate::stages::write::{ToSettle, ToWrite, Writer};
use crate::worker::ExternalWorker;

/// Redelivery delay of a message whose authorization needs the latest registry state while the registry is unavailable.
/// At this delay, a message reaches the consumer's `max_deliver` only after an hour.
const REGISTRY_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The way of the messages of one consumer to the write stage.
pub(crate) struct Intake<W: ExternalWorker> {
    pub(crate) worker: PhantomData<fn() -> W>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) pool: Pool,
    pub(crate) stop: CancellationToken,
}

impl<W: ExternalWorker> Intake<W> {
    /// Queues what the consumer delivers, and hands back what is left when the worker stops.
    pub(crate) async fn receive(
        self: Arc<Self>,
        mut puller: Puller,
        to_settle: mpsc::Sender<ToSettle<W::Item>>,
    ) {
        loop {
            let next = async {
                self.queues.room().await;
                puller.next().await
            };
            let delivery = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                delivery = next => delivery,
            };
            let Some(delivery) = delivery else { continue };
            let later = match self.authorizer.delay_of_service(&delivery) {
                Some(delay) => Some((delivery, Disposition::Redeliver(delay))),
                None => {
                    let aside = self.queues.push(delivery);
                    aside.map(|(delivery, delay)| (delivery, Disposition::SetAside(delay)))
                }
            };
            if let Some((delivery, disposition)) = later
                && !settle(&to_settle, delivery, disposition).await
            {
                break;
            }
        }
        let handed_back = puller.hand_back(self.queues.take_all()).await;
        tracing::debug!(worker = W::INFO.name, handed_back, "stopped pulling");
    }

    /// Passes batches of light messages to the write stage of their lane.
    pub(crate) async fn light_lane(
        self: Arc<Self>,
        lane: LightLane,
        to_write: mpsc::Sender<ToWrite<W>>,
        to_settle: mpsc::Sender<ToSettle<W::Item>>,
    ) {
        loop {
            // The batch is made up when it can be written, so that a message waits for as few others as possible.
            let ready = async {
                self.queues.light_is_due(lane).await;
                to_write.reserve().await
            };
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                permit = ready => permit,
            };
            // Without the write stage, what is queued is handed back.
            let Ok(permit) = permit else { return };
            let Some(batch) = self.sorted(self.queues.take_light(lane), &to_settle).await else { return };
            if !batch.is_empty() {
                permit.send(batch);
            }
        }
    }

    /// Writes heavy messages one by one.
    pub(crate) async fn heavy_lane(
        self: Arc<Self>,
        writer: Writer<W>,
        to_settle: mpsc::Sender<ToSettle<W::Item>>,
    ) {
        loop {
            let heavy = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                heavy = self.queues.next_heavy() => heavy,
            };
            let Some(batch) = self.sorted(heavy, &to_settle).await else { return };
            if !writer.write_and_settle(batch, &to_settle).await {
                return;
            }
        }
    }

    /// Decodes and authorizes a batch. `None` if the later stages have ended.
    async fn sorted(
        &self,
        deliveries: Vec<Delivery>,
        to_settle: &mpsc::Sender<ToSettle<W::Item>>,
    ) -> Option<ToWrite<W>> {
        tracing::debug!(worker = W::INFO.name, messages = deliveries.len(), "pulled");
        crash::reach(Point::Pulled);
        let mut sorted =
            Sorted { to_write: ToWrite::default(), maybe_stale: Vec::new(), to_settle: Vec::new() };
        for delivery in deliveries {
            match decode::decode::<W::Item>(&self.bodies, delivery) {
                Ok(decoded) => sorted.add(self.authorizer.authorize(decoded)),
                Err(refused) => {
                    let (delivery, malformed) = *refused;
                    let (class, reason) = (DeadLetterClass::Malformed, malformed.to_string().into());
                    sorted.to_settle.push((delivery, Disposition::DeadLetter { class, reason }));
                }
            }
        }
        if !sorted.maybe_stale.is_empty() {
            self.authorize_again(&mut sorted).await;
        }
        crash::reach(Point::Authorized);
        for (delivery, disposition) in sorted.to_settle {
            if !settle(to_settle, delivery, disposition).await {
                return None;
            }
        }
        Some(sorted.to_write)
    }

    /// Refreshes the registry state, then authorizes the messages again that it may allow.
    async fn authorize_again(&self, sorted: &mut Sorted<W>) {
        let refreshed = trust_refresh::refresh(&self.authorizer, &self.pool).await.is_ok();
        tracing::debug!(worker = W::INFO.name, refreshed, "refreshed the state of the registry");
        for (decoded, ..) in std::mem::take(&mut sorted.maybe_stale) {
            if refreshed {
                sorted.add(self.authorizer.authorize(decoded));
            } else {
                // Whether it is allowed cannot be decided until the registry is reachable again.
                sorted.to_settle.push((decoded.delivery, Disposition::Redeliver(REGISTRY_RETRY_DELAY)));
            }
        }
        for (decoded, subject, refusal) in std::mem::take(&mut sorted.maybe_stale) {
            sorted.to_write.denied.push(Denied::new(decoded, subject, refusal));
        }
    }
}

/// False if the settle stage has ended.
async fn settle<I>(
    to_settle: &mpsc::Sender<ToSettle<I>>,
    delivery: Delivery,
    disposition: Disposition,
) -> bool {
    to_settle.send(ToSettle::Single(Box::new(delivery), disposition)).await.is_ok()
}

/// A batch, grouped by the next step of each message.
struct Sorted<W: ExternalWorker> {
    to_write: ToWrite<W>,
    /// Messages that the latest registry state may allow.
    maybe_stale: Vec<(Decoded<W::Item>, RequestSubject, Refusal)>,
    to_settle: Vec<(Delivery, Disposition)>,
}

impl<W: ExternalWorker> Sorted<W> {
    fn add(&mut self, authorization: Authorization<W::Item>) {
        match authorization {
            Authorization::Authorized(authorized) => self.to_write.authorized.push(*authorized),
            Authorization::Denied(denied) => self.to_write.denied.push(*denied),
            Authorization::MaybeStale(decoded, subject, refusal) => {
                self.maybe_stale.push((*decoded, subject, refusal));
            }
            Authorization::RateLimited(delivery, delay) => {
                self.to_settle.push((*delivery, Disposition::Redeliver(delay)));
            }
        }
    }
}
