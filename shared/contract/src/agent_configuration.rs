use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::JsonObject;
use crate::label::labels;
use crate::number::{Bounded, Real};
use crate::value::{List, Name, SessionId, Text};

labels! {
    /// Who serves a model. The PostgreSQL enumeration `modelprovider`.
    ModelProvider {
        /// OpenAI.
        OpenAi = "openai",
        /// Anthropic.
        Anthropic = "anthropic",
        /// Google.
        Google = "google",
        /// A local server with Ollama.
        Ollama = "ollama",
        /// A server with vLLM.
        Vllm = "vllm",
        /// Anybody else.
        Other = "other",
    }
}

labels! {
    /// The status of an agent. The PostgreSQL enumeration `agentstatus`.
    AgentStatus {
        /// It does not run.
        Offline = "offline",
        /// It starts.
        Initializing = "initializing",
        /// It waits for work.
        Online = "online",
        /// It works.
        Busy = "busy",
        /// It has failed.
        Error = "error",
    }
}

/// Stores the configuration of an agent, replacing an earlier one. A retired agent is active again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfigure {
    /// The agent, unique for the user.
    pub agent_id: SessionId,
    /// The type of the agent, such as `expert`.
    pub agent_type: Text<1, 50>,
    /// Its role, such as `critic`.
    pub agent_role: Text<1, 100>,
    /// The model it runs on.
    pub assigned_llm: Text<1, 100>,
    /// Who serves the model.
    pub model_provider: ModelProvider,
    /// The family of the model. Agents of one family count as dependent on each other. Absent: agents of one provider are
    /// one family.
    #[serde(default)]
    pub model_family: Option<Text<1, 100>>,
    /// The number of the GPU it is assigned to.
    #[serde(default)]
    pub gpu_assignment: Option<Bounded<0, 1023>>,
    /// Its system prompt. Agents with the same prompt count as dependent on each other.
    #[serde(default)]
    pub system_prompt: Option<Text<1, 65_536>>,
    /// The temperature of the model, 0 to 2. Default: 0.7.
    #[serde(default = "temperature")]
    pub temperature: Real<2>,
    /// What it must observe.
    #[serde(default)]
    pub constraints: JsonObject,
    /// What it can do.
    #[serde(default)]
    pub capabilities: List<Name, 64>,
}

fn temperature() -> Real<2> {
    Real::literal(0.7)
}

/// Retires an agent. Its configuration and its record are kept.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentRetire {
    /// An agent that is configured.
    pub agent_id: SessionId,
}

/// Stores the profile of a configured agent, replacing an earlier one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentProfile {
    /// An agent that is configured.
    pub agent_id: SessionId,
    /// The name to show.
    pub display_name: Text<1, 100>,
    /// What the agent is for.
    #[serde(default)]
    pub description: Text<0, 8192>,
    /// What it knows about.
    #[serde(default)]
    pub expertise_areas: List<Name, 64>,
    /// Its status. Default: `offline`.
    #[serde(default = "offline")]
    pub current_status: AgentStatus,
    /// Figures about its work.
    #[serde(default)]
    pub performance_metrics: JsonObject,
}

fn offline() -> AgentStatus {
    AgentStatus::Offline
}

impl RequestFacts for AgentConfigure {
    fn target_agent(&self) -> Option<&str> {
        Some(self.agent_id.as_str())
    }
}

impl RequestFacts for AgentRetire {
    fn target_agent(&self) -> Option<&str> {
        Some(self.agent_id.as_str())
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Agent(&self.agent_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "the agent is retired already, or was configured later"
    }
}

impl RequestFacts for AgentProfile {
    fn target_agent(&self) -> Option<&str> {
        Some(self.agent_id.as_str())
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Agent(&self.agent_id)
    }
}
