use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::account::{
    DevicePut, DeviceRemove, PasskeyPut, PasskeyRemove, ProfilePut, SecondFactorPut, SecondFactorRemove,
    SettingPut, SettingRemove, UserPut,
};
use crate::agent::{AgentContextPut, AgentContextRemove};
use crate::context::{ContextPut, ContextRemove};
use crate::conversation::{ConversationPut, FeedbackPut, MessageAdd, SummaryPut};
use crate::facts::RequestFacts;
use crate::label::labels;
use crate::limit;
use crate::locate::locate;
use crate::malformed::Malformed;
use crate::router::{DecisionLog, ToolReport};
use crate::session::{SessionClose, SessionOpen};
use crate::subject::{RequestSubject, UserId};
use crate::value::check_body;
use crate::vector::{VectorIndex, VectorRemove};
use crate::workers::{self, WorkerInfo};

/// One kind of request: where it is published, what it looks like, what it causes.
#[derive(Debug)]
pub struct RequestKind {
    /// The stream that stores it.
    pub stream: &'static str,
    /// The worker that takes it.
    pub worker: &'static str,
    /// The noun of its subject.
    pub noun: &'static str,
    /// The verb of its subject.
    pub verb: &'static str,
    /// The event that its effect appends.
    pub event: EventType,
    /// Makes the JSON Schema of its body.
    pub schema: fn(SchemaGenerator) -> Schema,
    /// Its golden file, whose messages are the examples of the AsyncAPI document.
    #[cfg(feature = "asyncapi")]
    pub golden: &'static str,
}

/// The body of one kind of request.
pub trait RequestType: Serialize {
    /// Its kind.
    const KIND: &'static RequestKind;
}

impl RequestKind {
    /// The kind that a noun and a verb name.
    pub fn find(noun: &str, verb: &str) -> Option<&'static Self> {
        REQUESTS.iter().find(|kind| kind.noun == noun && kind.verb == verb).copied()
    }

    /// `noun.verb`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.noun, self.verb)
    }
}

/// The requests of one stream.
pub trait StreamRequest:
    TryFrom<Request, Error = Malformed> + Serialize + Clone + Send + Sync + 'static
{
    /// What kind of request this is.
    fn kind(&self) -> &'static RequestKind;

    /// What it says about itself.
    fn facts(&self) -> &dyn RequestFacts;

    /// The same, for changing it.
    fn facts_mut(&mut self) -> &mut dyn RequestFacts;
}

impl WorkerInfo {
    /// The requests that it takes.
    pub fn requests(&self) -> impl Iterator<Item = &'static RequestKind> {
        let name = self.name;
        REQUESTS.iter().copied().filter(move |kind| kind.worker == name)
    }
}

/// The table of requests. The enumerations of requests and events, the decoder, [`REQUESTS`], the streams' subjects, the broker
/// permissions and the AsyncAPI document follow from it: a new request is one line here.
macro_rules! requests {
    ($($(#[$doc:meta])* $own:ident($worker:ident) {
        $($variant:ident: $noun:literal $verb:literal => $event:ident $label:literal $event_doc:literal,)+
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

            /// What it says about itself.
            pub fn facts(&self) -> &dyn RequestFacts {
                match self { $($(Self::$variant(request) => request,)+)+ }
            }

            /// The same, for changing it.
            pub fn facts_mut(&mut self) -> &mut dyn RequestFacts {
                match self { $($(Self::$variant(request) => request,)+)+ }
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

            impl StreamRequest for $own {
                fn kind(&self) -> &'static RequestKind {
                    match self { $(Self::$variant(_) => &kinds::$variant,)+ }
                }

                fn facts(&self) -> &dyn RequestFacts {
                    match self { $(Self::$variant(request) => request,)+ }
                }

                fn facts_mut(&mut self) -> &mut dyn RequestFacts {
                    match self { $(Self::$variant(request) => request,)+ }
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

        labels! {
            /// What has happened: `noun.verb`, as in the subject of the event. The PostgreSQL type `eventtype`.
            EventType {
                $($(
                    #[doc = $event_doc]
                    $event = $label,
                )+)+
            }
        }

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
        UserPut: "user" "put" => UserStored "user.stored" "A user was mirrored.",
        ProfilePut: "profile" "put" => ProfileStored "profile.stored" "A profile was mirrored.",
        SettingPut: "setting" "put" => SettingStored "setting.stored" "A setting was stored.",
        SettingRemove: "setting" "remove" => SettingRemoved "setting.removed" "A setting was removed.",
        DevicePut: "device" "put" => DeviceStored "device.stored" "A device was mirrored.",
        DeviceRemove: "device" "remove" => DeviceRemoved "device.removed" "A device was removed.",
        SecondFactorPut: "second-factor" "put" => SecondFactorStored "second-factor.stored" "A second factor was mirrored.",
        SecondFactorRemove: "second-factor" "remove" => SecondFactorRemoved "second-factor.removed" "A second factor was removed.",
        PasskeyPut: "passkey" "put" => PasskeyStored "passkey.stored" "A WebAuthn credential was mirrored.",
        PasskeyRemove: "passkey" "remove" => PasskeyRemoved "passkey.removed" "A WebAuthn credential was removed.",
        SessionOpen: "session" "open" => SessionOpened "session.opened" "A session was opened, or opened again.",
        SessionClose: "session" "close" => SessionClosed "session.closed" "A session was closed.",
        ContextPut: "context" "put" => ContextStored "context.stored" "A context was stored.",
        ContextRemove: "context" "remove" => ContextRemoved "context.removed" "A context was removed.",
        ConversationPut: "conversation" "put" => ConversationStored "conversation.stored" "A conversation was described.",
        MessageAdd: "message" "add" => MessageAdded "message.added" "A message was added to a conversation.",
        SummaryPut: "summary" "put" => SummaryStored "summary.stored" "A summary was stored.",
        FeedbackPut: "feedback" "put" => FeedbackStored "feedback.stored" "Feedback was stored.",
        AgentContextPut: "agent-context" "put" => AgentContextStored "agent-context.stored" "An agent's context was stored.",
        AgentContextRemove: "agent-context" "remove" => AgentContextRemoved "agent-context.removed" "An agent's context was removed.",
    }
    /// What router-logger takes.
    RouterRequest(ROUTER_LOGGER) {
        DecisionLog: "decision" "log" => DecisionLogged "decision.logged" "A routing decision was logged.",
        ToolReport: "tool" "report" => ToolReported "tool.reported" "A tool was asked, has answered, or has failed.",
    }
    /// What vector-indexer takes.
    VectorRequest(VECTOR_INDEXER) {
        VectorIndex: "vector" "index" => VectorIndexed "vector.indexed" "Texts were made findable.",
        VectorRemove: "vector" "remove" => VectorRemoved "vector.removed" "Texts were forgotten.",
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
