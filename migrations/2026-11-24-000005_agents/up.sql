-- Agents, the GPUs they run on, and their conversations (the reference document's "Helios Multi-Agent Framework").
SET LOCAL lock_timeout = '100ms';

CREATE TYPE modelprovider AS ENUM ('openai', 'anthropic', 'google', 'ollama', 'vllm', 'other');
CREATE TYPE agentstatus AS ENUM ('offline', 'initializing', 'online', 'busy', 'error');
CREATE TYPE gpuallocationstatus AS ENUM ('pending', 'active', 'released', 'preempted', 'failed');
CREATE TYPE conversationphase AS ENUM (
    'initialization', 'planning', 'delegation', 'execution', 'consensus', 'synthesis', 'completed', 'failed'
);
CREATE TYPE taskdelegationstatus AS ENUM ('pending', 'accepted', 'in-progress', 'completed', 'failed', 'cancelled');

-- Of user 0, the platform, are the agents that everybody may use.
CREATE TABLE agent_configurations (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    agent_id varchar(128) NOT NULL,
    agent_type varchar(50) NOT NULL,
    agent_role varchar(100) NOT NULL,
    assigned_llm varchar(100) NOT NULL,
    model_provider modelprovider NOT NULL,
    gpu_assignment integer CHECK (gpu_assignment >= 0),
    system_prompt text,
    temperature double precision NOT NULL DEFAULT 0.7 CHECK (temperature BETWEEN 0 AND 2),
    constraints jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(constraints) = 'object'),
    capabilities jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(capabilities) = 'array'),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, agent_id)
);

CREATE TABLE agent_profiles (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    agent_id varchar(128) NOT NULL,
    config_id uuid NOT NULL,
    display_name varchar(100) NOT NULL,
    description text NOT NULL,
    expertise_areas jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(expertise_areas) = 'array'),
    current_status agentstatus NOT NULL DEFAULT 'offline',
    performance_metrics jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(performance_metrics) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, agent_id),
    FOREIGN KEY (user_id, config_id) REFERENCES agent_configurations (user_id, id)
);

-- Devices are nobody's.
CREATE TABLE gpu_resources (
    id integer PRIMARY KEY CHECK (id >= 0),
    gpu_name varchar(100) NOT NULL,
    total_memory_mb integer NOT NULL CHECK (total_memory_mb > 0),
    current_utilization_percent double precision NOT NULL DEFAULT 0
        CHECK (current_utilization_percent BETWEEN 0 AND 100),
    is_available boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gpu_allocations (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    gpu_id integer NOT NULL REFERENCES gpu_resources (id),
    agent_config_id uuid NOT NULL,
    allocated_memory_mb integer NOT NULL CHECK (allocated_memory_mb > 0),
    status gpuallocationstatus NOT NULL DEFAULT 'active',
    allocated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, agent_config_id),
    FOREIGN KEY (user_id, agent_config_id) REFERENCES agent_configurations (user_id, id)
);
CREATE INDEX gpu_allocations_by_gpu ON gpu_allocations (gpu_id) WHERE status IN ('pending', 'active');

CREATE TABLE multi_agent_conversations (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    session_id varchar(128) NOT NULL,
    conversation_title varchar(200) NOT NULL,
    current_phase conversationphase NOT NULL DEFAULT 'initialization',
    participating_agents jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(participating_agents) = 'array'),
    total_tasks_delegated bigint NOT NULL DEFAULT 0 CHECK (total_tasks_delegated >= 0),
    tasks_completed bigint NOT NULL DEFAULT 0 CHECK (tasks_completed BETWEEN 0 AND total_tasks_delegated),
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz CHECK (completed_at >= started_at),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, session_id)
);

CREATE TABLE task_delegations (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    pm_agent_id varchar(128) NOT NULL,
    target_agent_id varchar(128) NOT NULL,
    task_description text NOT NULL,
    status taskdelegationstatus NOT NULL DEFAULT 'pending',
    -- Not a foreign key: the event is written in the same transaction.
    blackboard_event_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, session_id) REFERENCES multi_agent_conversations (user_id, session_id)
);
CREATE INDEX task_delegations_by_session ON task_delegations (user_id, session_id, created_at);

CREATE TABLE agent_responses (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    task_delegation_id uuid NOT NULL,
    agent_id varchar(128) NOT NULL,
    response_text text NOT NULL,
    confidence_score double precision NOT NULL DEFAULT 0.5 CHECK (confidence_score BETWEEN 0 AND 1),
    processing_time_seconds double precision NOT NULL CHECK (processing_time_seconds >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, task_delegation_id) REFERENCES task_delegations (user_id, id)
);
CREATE INDEX agent_responses_by_task ON agent_responses (user_id, task_delegation_id, created_at);
