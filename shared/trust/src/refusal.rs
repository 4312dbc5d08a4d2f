//! Why a token is not good for what is asked for.

/// A refusal. The publisher learns only that there was one; the audit trail and the operator learn which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// There is no token.
    #[error("there is no service token in the header Authorization")]
    Missing,
    /// It is no JWT of this product's shape.
    #[error("the service token cannot be read")]
    Malformed,
    /// It is signed with another algorithm, or none.
    #[error("the service token is not signed with EdDSA")]
    Algorithm,
    /// It is a JWT for something else.
    #[error("the service token is of another type")]
    Type,
    /// No key of this name is in use.
    #[error("the service token is signed with an unknown or retired key")]
    UnknownKey,
    /// The key did not sign it.
    #[error("the service token's signature is wrong")]
    Signature,
    /// Somebody else issued it.
    #[error("the service token is of another issuer")]
    Issuer,
    /// It is for another deployment.
    #[error("the service token is for another audience")]
    Audience,
    /// It is good for longer than any token may be, or for no time.
    #[error("the service token's lifetime is out of bounds")]
    Lifetime,
    /// It was used before its time.
    #[error("the service token was not yet valid")]
    NotYetValid,
    /// It was used after its time.
    #[error("the service token had expired")]
    Expired,
    /// It belongs to another service than the one in the subject.
    #[error("the service token belongs to another service")]
    Service,
    /// It is for another user than the one in the subject.
    #[error("the service token is for another user")]
    User,
    /// It is for one session, and the request is not of it.
    #[error("the service token is for another session")]
    Session,
    /// It does not allow this noun and verb.
    #[error("the service token's scopes do not allow this")]
    Scope,
    /// It was revoked.
    #[error("the service token was revoked")]
    Revoked,
    /// The service is not registered, or is disabled.
    #[error("the service is not registered or is disabled")]
    UnknownService,
    /// The service itself may not do this, whatever its token says.
    #[error("the service may not do this")]
    ServiceScope,
    /// It carries no grant for the worker that has the request.
    #[error("the service token carries no grant for this worker")]
    Grant,
}

impl Refusal {
    /// The word under which `audit.security_violations` keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "token-missing",
            Self::Malformed => "token-malformed",
            Self::Algorithm => "token-algorithm",
            Self::Type => "token-type",
            Self::UnknownKey => "token-unknown-key",
            Self::Signature => "token-signature",
            Self::Issuer => "token-issuer",
            Self::Audience => "token-audience",
            Self::Lifetime => "token-lifetime",
            Self::NotYetValid => "token-not-yet-valid",
            Self::Expired => "token-expired",
            Self::Service => "token-service",
            Self::User => "token-user",
            Self::Session => "token-session",
            Self::Scope => "token-scope",
            Self::Revoked => "token-revoked",
            Self::UnknownService => "service-unknown",
            Self::ServiceScope => "service-scope",
            Self::Grant => "token-grant",
        }
    }
}
