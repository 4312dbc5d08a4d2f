use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account::{
    DevicePut, DeviceRemove, PasskeyPut, PasskeyRemove, ProfilePut, SecondFactorPut, SecondFactorRemove,
    SettingPut, SettingRemove, UserPut,
};
use crate::agent::{AgentContextPut, AgentContextRemove};
use crate::catalogue::Kind;
use crate::context::{ContextPut, ContextRemove};
use crate::conversation::{ConversationPut, FeedbackPut, MessageAdd, SummaryPut};
use crate::event::EventType;
use crate::limit;
use crate::locate::locate;
use crate::malformed::Malformed;
use crate::session::{SessionClose, SessionOpen};
use crate::subject::{RequestSubject, UserId};
use crate::value::SessionId;

/// The one table of requests. From it come the enumeration, its decoder, the catalogue, and through that the
/// stream's subjects and the AsyncAPI document: a new request is one line here.
macro_rules! requests {
    ($($variant:ident: $stream:literal $worker:literal $noun:literal $verb:literal => $event:ident,)+) => {
        /// A decoded request.
        #[derive(Clone, Debug, Serialize)]
        #[serde(untagged)]
        pub enum Request {
            $(
                #[doc = concat!("`memory.req.*.", $noun, ".", $verb, ".*`")]
                $variant($variant),
            )+
        }

        impl Request {
            /// Reads the body of a request as its subject says.
            ///
            /// # Errors
            /// [`Malformed`] names the field that cannot be read, or `subject` when no request is published there.
            pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
                check_size(body)?;
                check_platform(subject)?;
                match (subject.noun.as_str(), subject.verb.as_str()) {
                    $(($noun, $verb) => read(body).map(Self::$variant),)+
                    (noun, verb) => Err(Malformed::new("subject", format!("no request is named {noun}.{verb}"))),
                }
            }

            /// What kind of request this is.
            pub fn kind(&self) -> &'static Kind {
                match self { $(Self::$variant(_) => &kinds::$variant,)+ }
            }
        }

        #[allow(non_upper_case_globals)]
        mod kinds {
            use super::{EventType, Kind};
            $(
                pub static $variant: Kind = Kind {
                    stream: $stream,
                    worker: $worker,
                    noun: $noun,
                    verb: $verb,
                    event: EventType::$event,
                    schema: schemars::SchemaGenerator::into_root_schema_for::<super::$variant>,
                };
            )+
        }

        /// Every request, by stream.
        pub static CATALOGUE: &[&Kind] = &[$(&kinds::$variant,)+];
    };
}

requests! {
    UserPut: "CONTEXT" "context-writer" "user" "put" => UserStored,
    ProfilePut: "CONTEXT" "context-writer" "profile" "put" => ProfileStored,
    SettingPut: "CONTEXT" "context-writer" "setting" "put" => SettingStored,
    SettingRemove: "CONTEXT" "context-writer" "setting" "remove" => SettingRemoved,
    DevicePut: "CONTEXT" "context-writer" "device" "put" => DeviceStored,
    DeviceRemove: "CONTEXT" "context-writer" "device" "remove" => DeviceRemoved,
    SecondFactorPut: "CONTEXT" "context-writer" "second-factor" "put" => SecondFactorStored,
    SecondFactorRemove: "CONTEXT" "context-writer" "second-factor" "remove" => SecondFactorRemoved,
    PasskeyPut: "CONTEXT" "context-writer" "passkey" "put" => PasskeyStored,
    PasskeyRemove: "CONTEXT" "context-writer" "passkey" "remove" => PasskeyRemoved,
    SessionOpen: "CONTEXT" "context-writer" "session" "open" => SessionOpened,
    SessionClose: "CONTEXT" "context-writer" "session" "close" => SessionClosed,
    ContextPut: "CONTEXT" "context-writer" "context" "put" => ContextStored,
    ContextRemove: "CONTEXT" "context-writer" "context" "remove" => ContextRemoved,
    ConversationPut: "CONTEXT" "context-writer" "conversation" "put" => ConversationStored,
    MessageAdd: "CONTEXT" "context-writer" "message" "add" => MessageAdded,
    SummaryPut: "CONTEXT" "context-writer" "summary" "put" => SummaryStored,
    FeedbackPut: "CONTEXT" "context-writer" "feedback" "put" => FeedbackStored,
    AgentContextPut: "CONTEXT" "context-writer" "agent-context" "put" => AgentContextStored,
    AgentContextRemove: "CONTEXT" "context-writer" "agent-context" "remove" => AgentContextRemoved,
}

impl Request {
    /// The session that it belongs to; none for what belongs to the user as such.
    pub fn session_id(&self) -> Option<&SessionId> {
        match self {
            Self::SessionOpen(open) => Some(&open.session_id),
            Self::SessionClose(close) => Some(&close.session_id),
            Self::ContextPut(put) => Some(&put.session_id),
            Self::ContextRemove(remove) => Some(&remove.session_id),
            Self::SummaryPut(put) => Some(&put.session_id),
            Self::AgentContextPut(put) => Some(&put.session_id),
            Self::AgentContextRemove(remove) => Some(&remove.session_id),
            Self::UserPut(_)
            | Self::ProfilePut(_)
            | Self::SettingPut(_)
            | Self::SettingRemove(_)
            | Self::DevicePut(_)
            | Self::DeviceRemove(_)
            | Self::SecondFactorPut(_)
            | Self::SecondFactorRemove(_)
            | Self::PasskeyPut(_)
            | Self::PasskeyRemove(_)
            | Self::ConversationPut(_)
            | Self::MessageAdd(_)
            | Self::FeedbackPut(_) => None,
        }
    }
}

fn check_size(body: &[u8]) -> Result<(), Malformed> {
    if body.len() > limit::BODY_BYTES {
        let problem = format!("has {} bytes, more than {}", body.len(), limit::BODY_BYTES);
        return Err(Malformed::new("body", problem));
    }
    Ok(())
}

/// The platform is no person: it has settings and nothing else.
fn check_platform(subject: &RequestSubject) -> Result<(), Malformed> {
    if subject.user_id == UserId::PLATFORM && subject.noun != "setting" {
        return Err(Malformed::new("subject", "user 0 is the platform, which has settings only"));
    }
    Ok(())
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    // Otherwise an array would be taken for the fields in their order.
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(body).map_err(|_| locate::<T>(body)),
        Some(_) => Err(Malformed::new("body", "must be a JSON object")),
        None => Err(Malformed::new("body", "is empty; a JSON object is expected")),
    }
}
