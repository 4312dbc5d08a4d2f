//! Why a token does not authorize a request.

/// Why a token was rejected. The publisher learns only that it was rejected; the audit trail and the operator get the
/// reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// There is no token.
    #[error("there is no service token in the header Authorization")]
    Missing,
    /// It is not a JWT with the expected claims.
    #[error("the service token cannot be decoded")]
    Malformed,
    /// It is signed with another algorithm, or not signed.
    #[error("the service token is not signed with EdDSA")]
    Algorithm,
    /// The JWT has another `typ`.
    #[error("the service token is of another type")]
    Type,
    /// The registry has no active key of this name.
    #[error("the service token is signed with an unknown or retired key")]
    UnknownKey,
    /// The signature is invalid.
    #[error("the service token's signature is wrong")]
    Signature,
    /// It was issued by another issuer.
    #[error("the service token is from another issuer")]
    Issuer,
    /// It is for another deployment.
    #[error("the service token is for another audience")]
    Audience,
    /// Its lifetime is zero or too long.
    #[error("the service token's lifetime is out of range")]
    Lifetime,
    /// It was used before its `nbf`.
    #[error("the service token was not yet valid")]
    NotYetValid,
    /// It was used after its `exp`.
    #[error("the service token had expired")]
    Expired,
    /// It belongs to another service than the one in the subject.
    #[error("the service token belongs to another service")]
    Service,
    /// It is for another user than the one in the subject.
    #[error("the service token is for another user")]
    User,
    /// It is limited to a session, and the request belongs to another or to none.
    #[error("the service token is for another session")]
    Session,
    /// No scope allows this noun and verb.
    #[error("the service token's scopes do not allow this")]
    Scope,
    /// It was revoked.
    #[error("the service token was revoked")]
    Revoked,
    /// The service is not registered, or is disabled.
    #[error("the service is not registered or is disabled")]
    UnknownService,
    /// The service itself is not allowed to do this, whatever its token allows.
    #[error("the service may not do this")]
    ServiceScope,
    /// It contains no grant for the worker that processes the request.
    #[error("the service token contains no grant for this worker")]
    Grant,
}

impl Refusal {
    /// The reason as stored in `audit.security_violations`.
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
