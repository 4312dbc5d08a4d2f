SET LOCAL lock_timeout = '100ms';
DROP TABLE agent_responses, task_delegations, multi_agent_conversations, gpu_allocations, gpu_resources, agent_profiles,
    agent_configurations;
DROP TYPE modelprovider, agentstatus, gpuallocationstatus, conversationphase, taskdelegationstatus;
