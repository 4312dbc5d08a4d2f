use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account::{
    DevicePut, DeviceRemove, PasskeyPut, PasskeyRemove, ProfilePut, SecondFactorPut, SecondFactorRemove,
    SettingPut, SettingRemove, UserPut,
};
use crate::agent::{AgentContextPut, AgentContextRemove};
use crate::context::{ContextPut, ContextRemove};
use crate::conversation::{ConversationPut, FeedbackPut, MessageAdd, SummaryPut};
use crate::event::EventType;
use crate::limit;
use crate::locate::locate;
use crate::malformed::Malformed;
use crate::request_kind::RequestKind;
use crate::router::{DecisionLog, ToolReport};
use crate::session::{SessionClose, SessionOpen};
use crate::subject::{RequestSubject, UserId};
use crate::value::{SessionId, check_body};
use crate::vector::{VectorIndex, VectorRemove};
use crate::workers;

/// The one table of requests. From it come the enumerations, their decoder, the catalogue, and through that the
/// streams' subjects and the AsyncAPI document: a new request is one line here.
macro_rules! requests {
    ($($(#[$doc:meta])* $own:ident($worker:ident) {
        $($variant:ident: $noun:literal $verb:literal => $event:ident,)+
    })+) => {
        /// A decoded request.
        #[derive(Clone, Debug, Serialize)]
        #[serde(untagged)]
        pub enum Request {
            $($(
                #[doc = concat!("`memory.req.*.", $noun, ".", $verb, ".*`")]
                $variant($variant),
            )+)+
        }

        impl Request {
            /// Reads the body of a request as its subject says.
            ///
            /// # Errors
            /// [`Malformed`] names the field that cannot be read, or `subject` when no request is published there.
            pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
                check_size(body)?;
                let request = Self::recorded(subject, body)?;
                check_body(body).map_err(|problem| Malformed::new("body", problem))?;
                Ok(request)
            }

            /// The same of a body out of an event, which has the size that the database has given it.
            ///
            /// # Errors
            /// As [`Request::decode`].
            pub fn recorded(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
                check_platform(subject)?;
                match (subject.noun.as_str(), subject.verb.as_str()) {
                    $($(($noun, $verb) => read(body).map(Self::$variant),)+)+
                    (noun, verb) => Err(Malformed::new("subject", format!("no request is named {noun}.{verb}"))),
                }
            }

            /// What kind of request this is.
            pub fn kind(&self) -> &'static RequestKind {
                match self { $($(Self::$variant(_) => &kinds::$variant,)+)+ }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Serialize)]
            #[serde(untagged)]
            pub enum $own {
                $(
                    #[doc = concat!("`memory.req.*.", $noun, ".", $verb, ".*`")]
                    $variant($variant),
                )+
            }

            impl $own {
                /// What kind of request this is.
                pub fn kind(&self) -> &'static RequestKind {
                    match self { $(Self::$variant(_) => &kinds::$variant,)+ }
                }
            }

            impl TryFrom<Request> for $own {
                type Error = Malformed;

                fn try_from(request: Request) -> Result<Self, Malformed> {
                    match request {
                        $(Request::$variant(request) => Ok(Self::$variant(request)),)+
                        other => Err(Malformed::new(
                            "subject",
                            format!("{} is not for {}", other.kind().name(), workers::$worker.name),
                        )),
                    }
                }
            }
        )+

        #[allow(non_upper_case_globals)]
        mod kinds {
            use super::{EventType, RequestKind, workers};
            $($(
                pub static $variant: RequestKind = RequestKind {
                    stream: match workers::$worker.stream { Some(stream) => stream, None => "" },
                    worker: workers::$worker.name,
                    noun: $noun,
                    verb: $verb,
                    event: EventType::$event,
                    schema: schemars::SchemaGenerator::into_root_schema_for::<super::$variant>,
                    #[cfg(feature = "asyncapi")]
                    golden: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $noun, ".", $verb, ".json")),
                };
            )+)+
        }

        $($(
            impl crate::RequestType for $variant {
                const KIND: &'static RequestKind = &kinds::$variant;
            }
        )+)+

        /// Every request, by stream.
        pub static REQUESTS: &[&RequestKind] = &[$($(&kinds::$variant,)+)+];
    };
}

requests! {
    /// What context-writer takes.
    ContextRequest(CONTEXT_WRITER) {
        UserPut: "user" "put" => UserStored,
        ProfilePut: "profile" "put" => ProfileStored,
        SettingPut: "setting" "put" => SettingStored,
        SettingRemove: "setting" "remove" => SettingRemoved,
        DevicePut: "device" "put" => DeviceStored,
        DeviceRemove: "device" "remove" => DeviceRemoved,
        SecondFactorPut: "second-factor" "put" => SecondFactorStored,
        SecondFactorRemove: "second-factor" "remove" => SecondFactorRemoved,
        PasskeyPut: "passkey" "put" => PasskeyStored,
        PasskeyRemove: "passkey" "remove" => PasskeyRemoved,
        SessionOpen: "session" "open" => SessionOpened,
        SessionClose: "session" "close" => SessionClosed,
        ContextPut: "context" "put" => ContextStored,
        ContextRemove: "context" "remove" => ContextRemoved,
        ConversationPut: "conversation" "put" => ConversationStored,
        MessageAdd: "message" "add" => MessageAdded,
        SummaryPut: "summary" "put" => SummaryStored,
        FeedbackPut: "feedback" "put" => FeedbackStored,
        AgentContextPut: "agent-context" "put" => AgentContextStored,
        AgentContextRemove: "agent-context" "remove" => AgentContextRemoved,
    }
    /// What router-logger takes.
    RouterRequest(ROUTER_LOGGER) {
        DecisionLog: "decision" "log" => DecisionLogged,
        ToolReport: "tool" "report" => ToolReported,
    }
    /// What vector-indexer takes.
    VectorRequest(VECTOR_INDEXER) {
        VectorIndex: "vector" "index" => VectorIndexed,
        VectorRemove: "vector" "remove" => VectorRemoved,
    }
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
            Self::DecisionLog(log) => Some(&log.session_id),
            Self::ToolReport(report) => Some(&report.session_id),
            Self::VectorIndex(index) => index.session_id.as_ref(),
            Self::VectorRemove(remove) => remove.session_id.as_ref(),
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

pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    // Otherwise an array would be taken for the fields in their order.
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(body).map_err(|_| locate::<T>(body)),
        Some(_) => Err(Malformed::new("body", "must be a JSON object")),
        None => Err(Malformed::new("body", "is empty; a JSON object is expected")),
    }
}
