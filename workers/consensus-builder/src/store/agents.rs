//! Configurations and profiles of agents.

use std::sync::LazyLock;

use ::store::unnest::UnnestRow;
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{AgentConfigure, AgentProfile, AgentRetire, Bounded, Text};
use uuid::Uuid;

use super::batch::{Item, Verdicts, apply, json};

::store::unnest_row! {
    struct ConfigurationRow<'a> {
        id: Uuid,
        user_id: i32,
        agent_id: &'a str,
        agent_type: &'a str,
        agent_role: &'a str,
        assigned_llm: &'a str,
        model_provider: &'a str,
        model_family: Option<&'a str>,
        gpu_assignment: Option<i32>,
        system_prompt: Option<&'a str>,
        temperature: f64,
        constraints: &'a str,
        capabilities: String,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static CONFIGURE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ConfigurationRow::arrays(1), ConfigurationRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.* FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO agent_configurations AS t (id, user_id, agent_id, agent_type, agent_role, assigned_llm, model_provider,
            model_family, gpu_assignment, system_prompt, temperature, constraints, capabilities, created_at, updated_at, request_id)
        SELECT id, user_id, agent_id, agent_type, agent_role, assigned_llm, model_provider::modelprovider, model_family,
            gpu_assignment, system_prompt, temperature, constraints::jsonb, capabilities::jsonb, stored_at, stored_at, request_id
        FROM input ORDER BY user_id, agent_id
        ON CONFLICT (user_id, agent_id) DO UPDATE SET agent_type = excluded.agent_type, agent_role = excluded.agent_role,
            assigned_llm = excluded.assigned_llm, model_provider = excluded.model_provider, model_family = excluded.model_family,
            gpu_assignment = excluded.gpu_assignment, system_prompt = excluded.system_prompt, temperature = excluded.temperature,
            constraints = excluded.constraints, capabilities = excluded.capabilities, is_active = true,
            updated_at = excluded.updated_at, request_id = excluded.request_id
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, agent_id
    )
    SELECT i.ordinal, w.agent_id IS NOT NULL AS is_written
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.agent_id = i.agent_id"
    )
});

::store::unnest_row! {
    struct RetirementRow<'a> {
        user_id: i32,
        agent_id: &'a str,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static RETIRE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (RetirementRow::arrays(1), RetirementRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.* FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
    ), known AS MATERIALIZED (
        SELECT i.*, t.is_active AND i.stored_at >= t.updated_at AS is_due
        FROM agent_configurations t JOIN input i ON i.user_id = t.user_id AND i.agent_id = t.agent_id
        ORDER BY t.user_id, t.agent_id FOR NO KEY UPDATE OF t
    ), written AS (
        UPDATE agent_configurations t SET is_active = false, updated_at = k.stored_at, request_id = k.request_id
        FROM known k WHERE k.is_due AND t.user_id = k.user_id AND t.agent_id = k.agent_id
        RETURNING t.user_id, t.agent_id
    )
    SELECT k.ordinal, w.agent_id IS NOT NULL AS is_written
    FROM known k LEFT JOIN written w ON w.user_id = k.user_id AND w.agent_id = k.agent_id"
    )
});

::store::unnest_row! {
    struct ProfileRow<'a> {
        id: Uuid,
        user_id: i32,
        agent_id: &'a str,
        display_name: &'a str,
        description: &'a str,
        expertise_areas: String,
        current_status: &'a str,
        performance_metrics: &'a str,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static PROFILE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ProfileRow::arrays(1), ProfileRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.*, c.id AS config_id
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN agent_configurations c ON c.user_id = i.user_id AND c.agent_id = i.agent_id
    ), written AS (
        INSERT INTO agent_profiles AS t (id, user_id, agent_id, config_id, display_name, description, expertise_areas,
            current_status, performance_metrics, created_at, updated_at, request_id)
        SELECT id, user_id, agent_id, config_id, display_name, description, expertise_areas::jsonb,
            current_status::agentstatus, performance_metrics::jsonb, stored_at, stored_at, request_id
        FROM input ORDER BY user_id, agent_id
        ON CONFLICT (user_id, agent_id) DO UPDATE SET display_name = excluded.display_name, description = excluded.description,
            expertise_areas = excluded.expertise_areas, current_status = excluded.current_status,
            performance_metrics = excluded.performance_metrics, updated_at = excluded.updated_at,
            request_id = excluded.request_id
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, agent_id
    )
    SELECT i.ordinal, w.agent_id IS NOT NULL AS is_written
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.agent_id = i.agent_id"
    )
});

impl<'a> ConfigurationRow<'a> {
    fn new(item: &Item<'a, AgentConfigure>) -> Self {
        let request = item.request;
        Self {
            id: item.message.event_id,
            user_id: item.user(),
            agent_id: request.agent_id.as_str(),
            agent_type: request.agent_type.as_str(),
            agent_role: request.agent_role.as_str(),
            assigned_llm: request.assigned_llm.as_str(),
            model_provider: request.model_provider.as_str(),
            model_family: request.model_family.as_ref().map(Text::as_str),
            gpu_assignment: request.gpu_assignment.map(Bounded::get).and_then(|gpu| i32::try_from(gpu).ok()),
            system_prompt: request.system_prompt.as_ref().map(Text::as_str),
            temperature: request.temperature.get(),
            constraints: request.constraints.as_str(),
            capabilities: json(&request.capabilities),
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        }
    }
}

impl<'a> RetirementRow<'a> {
    fn new(item: &Item<'a, AgentRetire>) -> Self {
        Self {
            user_id: item.user(),
            agent_id: item.request.agent_id.as_str(),
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        }
    }
}

impl<'a> ProfileRow<'a> {
    fn new(item: &Item<'a, AgentProfile>) -> Self {
        let request = item.request;
        Self {
            id: item.message.event_id,
            user_id: item.user(),
            agent_id: request.agent_id.as_str(),
            display_name: request.display_name.as_str(),
            description: request.description.as_str(),
            expertise_areas: json(&request.expertise_areas),
            current_status: request.current_status.as_str(),
            performance_metrics: request.performance_metrics.as_str(),
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        }
    }
}

/// Stores configurations.
pub(crate) async fn configure(
    connection: &mut Connection,
    items: &[Item<'_, AgentConfigure>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, AgentConfigure>| (item.user(), item.request.agent_id.clone());
    apply(connection, &CONFIGURE, items, key, ConfigurationRow::new, verdicts).await.map(drop)
}

/// Retires agents.
pub(crate) async fn retire(
    connection: &mut Connection,
    items: &[Item<'_, AgentRetire>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, AgentRetire>| (item.user(), item.request.agent_id.clone());
    apply(connection, &RETIRE, items, key, RetirementRow::new, verdicts).await.map(drop)
}

/// Stores profiles.
pub(crate) async fn profile(
    connection: &mut Connection,
    items: &[Item<'_, AgentProfile>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, AgentProfile>| (item.user(), item.request.agent_id.clone());
    apply(connection, &PROFILE, items, key, ProfileRow::new, verdicts).await.map(drop)
}
