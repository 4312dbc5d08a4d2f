//! Service tokens: JSON Web Tokens (RFC 7519) that follow RFC 8725: a single algorithm that no header can change, an
//! explicit type, checked issuer and audience, and a short lifetime.
//!
//! ```text
//! {"alg":"EdDSA","typ":"memfleet+jwt","kid":"main"}
//! {"iss":"memfleet","aud":"memfleet","sub":"simple-chat","uid":42,"scope":"context:* session:open",
//!  "jti":"0199…","nbf":1800000000,"exp":1800000900,
//!  "grant":{"key":"main","exp":1800692100,"seals":{"w_context_writer":"…"}}}
//! ```
//!
//! A token must be valid when JetStream stores the message; the clock of the worker does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use contract::{RequestSubject, Service, SessionId, UserId};
use data_encoding::BASE64URL_NOPAD as BASE64;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::grant::content;
use crate::key::PublicKey;
use crate::refusal::Refusal;
use crate::scope::Scope;
use crate::text::to_hex;

/// The only algorithm (RFC 8037).
pub(crate) const ALGORITHM: &str = "EdDSA";
/// Explicit typing (RFC 8725, section 3.11): no other kind of JWT is accepted.
pub(crate) const TYPE: &str = "memfleet+jwt";
/// The issuer of every token.
pub(crate) const ISSUER: &str = "memfleet";
/// The longest lifetime of a token.
pub const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(86_400);
/// How far the issuer's clock may be ahead of the broker's, in seconds.
const CLOCK_SKEW_S: u64 = 5;
/// The largest token that is accepted, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header<'a> {
    pub(crate) alg: &'a str,
    pub(crate) typ: Option<&'a str>,
    pub(crate) kid: Option<&'a str>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    pub(crate) sub: String,
    pub(crate) uid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sid: Option<String>,
    pub(crate) scope: String,
    pub(crate) jti: Uuid,
    pub(crate) nbf: u64,
    pub(crate) exp: u64,
    pub(crate) grant: GrantClaim,
}

/// Grants without the fields that the other claims contain.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantClaim {
    pub(crate) key: String,
    pub(crate) exp: u64,
    /// The HMAC of the grant of each database role.
    pub(crate) seals: BTreeMap<String, String>,
}

/// A token with a verified signature. [`Token::check`] decides what it authorizes.
#[derive(Clone, Debug)]
pub struct Token {
    id: Uuid,
    key_name: String,
    service: Service,
    user_id: UserId,
    session: Option<SessionId>,
    scopes: Vec<Scope>,
    not_before: u64,
    expires: u64,
    grants: BTreeMap<String, Arc<str>>,
}

impl Token {
    /// Its `jti`, for revocation.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The name of the key that signed it.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The service that it was issued to.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The user that it acts for.
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    /// The only session that it is for; none for all sessions of the user.
    pub fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// Its scopes.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// The start of its validity, in seconds since 1970.
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// When it expires, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// The grant for a database role.
    ///
    /// # Errors
    /// [`Refusal::Grant`] if the scopes of the token do not need this role.
    pub fn grant(&self, role: &str) -> Result<&Arc<str>, Refusal> {
        self.grants.get(role).ok_or(Refusal::Grant)
    }

    /// The database roles that it contains grants for.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.grants.keys().map(String::as_str)
    }

    /// Checks that the token authorizes a request on this subject for this session, stored by JetStream at this time,
    /// in seconds since 1970.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn check(
        &self,
        subject: &RequestSubject,
        session: Option<&str>,
        stored_at: u64,
    ) -> Result<(), Refusal> {
        if self.service != subject.service {
            return Err(Refusal::Service);
        }
        if self.user_id != subject.user_id {
            return Err(Refusal::User);
        }
        self.check_time(stored_at)?;
        if !self.scopes.iter().any(|scope| scope.allows(&subject.noun, &subject.verb)) {
            return Err(Refusal::Scope);
        }
        match &self.session {
            Some(own) if session != Some(own.as_str()) => Err(Refusal::Session),
            Some(_) | None => Ok(()),
        }
    }

    /// Checks that the token is valid at this time, in seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal::NotYetValid`] or [`Refusal::Expired`].
    pub fn check_time(&self, at: u64) -> Result<(), Refusal> {
        if at.saturating_add(CLOCK_SKEW_S) < self.not_before {
            return Err(Refusal::NotYetValid);
        }
        if at >= self.expires.saturating_add(CLOCK_SKEW_S) {
            return Err(Refusal::Expired);
        }
        Ok(())
    }
}

/// Decodes a token and verifies its signature, issuer and audience. `key` returns the public key of a name.
///
/// # Errors
/// The first [`Refusal`]. The claims are not read before the signature is verified.
pub fn verify<'k>(
    token: &str,
    audience: &str,
    key: impl FnOnce(&str) -> Option<&'k PublicKey>,
) -> Result<Token, Refusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
    let header_json = decode(header)?;
    let header: Header<'_> = serde_json::from_slice(&header_json).map_err(|_| Refusal::Malformed)?;
    if header.alg != ALGORITHM {
        return Err(Refusal::Algorithm);
    }
    if header.typ != Some(TYPE) {
        return Err(Refusal::Type);
    }
    let key = header.kid.and_then(key).ok_or(Refusal::UnknownKey)?;
    let signature: [u8; 64] = decode(signature)?.try_into().map_err(|_| Refusal::Signature)?;
    if !key.verifies(signed.as_bytes(), &signature) {
        return Err(Refusal::Signature);
    }
    let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| Refusal::Malformed)?;
    read(claims, audience, key.name())
}

fn decode(part: &str) -> Result<Vec<u8>, Refusal> {
    BASE64.decode(part.as_bytes()).map_err(|_| Refusal::Malformed)
}

fn read(claims: Claims, audience: &str, key_name: &str) -> Result<Token, Refusal> {
    if claims.iss != ISSUER {
        return Err(Refusal::Issuer);
    }
    if claims.aud != audience {
        return Err(Refusal::Audience);
    }
    let life =
        claims.exp.checked_sub(claims.nbf).filter(|life| (1..=MAX_TOKEN_LIFETIME.as_secs()).contains(life));
    if life.is_none() {
        return Err(Refusal::Lifetime);
    }
    let malformed = |_| Refusal::Malformed;
    let session = claims.sid.map(SessionId::new).transpose().map_err(|_| Refusal::Malformed)?;
    let service: Service = claims.sub.parse().map_err(malformed)?;
    let user_id = UserId::new(claims.uid).map_err(malformed)?;
    let GrantClaim { key, exp, seals } = claims.grant;
    let grants = seals
        .into_iter()
        .map(|(role, seal)| {
            let content = content(&key, user_id, session.as_ref(), &service, &role, claims.jti, exp);
            Ok((role, format!("{content}|{}", to_hex(&decode(&seal)?)).into()))
        })
        .collect::<Result<_, Refusal>>()?;
    Ok(Token {
        id: claims.jti,
        key_name: key_name.to_owned(),
        service,
        user_id,
        session,
        scopes: Scope::parse_list(&claims.scope).map_err(|_| Refusal::Malformed)?,
        not_before: claims.nbf,
        expires: claims.exp,
        grants,
    })
}
