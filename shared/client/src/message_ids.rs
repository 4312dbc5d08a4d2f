use uuid::Uuid;

/// The ids by which the broker recognizes a request that is published again, for the header `Nats-Msg-Id`.
///
/// All services share the ids of a stream. If the request id itself were used, a service that knows the request id of
/// another one could publish first under it, and the broker would drop the other request. These ids are digests of a
/// secret and the request id, so that no other service knows them.
#[derive(Clone)]
pub struct MessageIds {
    secret: Uuid,
}

impl MessageIds {
    /// Ids of one process. A request that another process publishes again is recognized by the worker's inbox.
    pub fn random() -> Self {
        Self { secret: Uuid::new_v4() }
    }

    /// Ids that stay the same in every process with this secret, such as the service's nkey seed.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self { secret: Uuid::new_v5(&Uuid::NAMESPACE_OID, secret) }
    }

    /// The id for a request id.
    pub fn of(&self, request_id: Uuid) -> Uuid {
        Uuid::new_v5(&self.secret, request_id.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_the_secret_and_the_request() {
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let ids = MessageIds::from_secret(b"seed");
        assert_eq!(ids.of(one), MessageIds::from_secret(b"seed").of(one));
        assert_ne!(ids.of(one), ids.of(other));
        assert_ne!(ids.of(one), MessageIds::from_secret(b"another").of(one));
        assert_ne!(MessageIds::random().of(one), MessageIds::random().of(one));
    }
}
