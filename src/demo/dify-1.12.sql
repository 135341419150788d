-- The tables of Dify 1.12.0 to 1.14.2 that this tool reads or minds, as a fresh install has them, with
-- the indexes they really have: workflow_node_executions has none that begins with created_at.
-- Dify's uuid-ossp and uuidv7() are stood in for by gen_random_uuid(), so that no extension is needed.
CREATE OR REPLACE FUNCTION uuid_generate_v4() RETURNS uuid LANGUAGE sql VOLATILE AS 'SELECT gen_random_uuid()';
CREATE OR REPLACE FUNCTION uuidv7() RETURNS uuid LANGUAGE sql VOLATILE AS 'SELECT gen_random_uuid()';

CREATE TABLE workflow_runs (
  id              uuid DEFAULT uuid_generate_v4() NOT NULL,
  tenant_id       uuid NOT NULL,
  app_id          uuid NOT NULL,
  workflow_id     uuid NOT NULL,
  type            varchar(255) NOT NULL,
  triggered_from  varchar(255) NOT NULL,
  version         varchar(255) NOT NULL,
  graph           text,
  inputs          text,
  status          varchar(255) NOT NULL,
  outputs         text,                                   -- ORM default "{}"
  error           text,
  elapsed_time    double precision DEFAULT 0 NOT NULL,
  total_tokens    bigint DEFAULT 0 NOT NULL,
  total_steps     integer DEFAULT 0,
  created_by_role varchar(255) NOT NULL,
  created_by      uuid NOT NULL,
  created_at      timestamp without time zone DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
  finished_at     timestamp without time zone,
  exceptions_count integer DEFAULT 0,
  CONSTRAINT workflow_run_pkey PRIMARY KEY (id)
);
CREATE INDEX workflow_run_triggerd_from_idx  ON workflow_runs (tenant_id, app_id, triggered_from);
CREATE INDEX workflow_run_created_at_id_idx  ON workflow_runs (created_at, id);                       -- 1.11.3

CREATE TABLE workflow_node_executions (
  id                  uuid DEFAULT uuid_generate_v4() NOT NULL,
  tenant_id           uuid NOT NULL,
  app_id              uuid NOT NULL,
  workflow_id         uuid NOT NULL,
  triggered_from      varchar(255) NOT NULL,
  workflow_run_id     uuid,
  "index"             integer NOT NULL,
  predecessor_node_id varchar(255),
  node_id             varchar(255) NOT NULL,
  node_type           varchar(255) NOT NULL,
  title               varchar(255) NOT NULL,
  inputs              text,
  process_data        text,
  outputs             text,
  status              varchar(255) NOT NULL,
  error               text,
  elapsed_time        double precision DEFAULT 0 NOT NULL,
  execution_metadata  text,
  created_at          timestamp without time zone DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
  created_by_role     varchar(255) NOT NULL,
  created_by          uuid NOT NULL,
  finished_at         timestamp without time zone,
  node_execution_id   varchar(255),
  CONSTRAINT workflow_node_execution_pkey PRIMARY KEY (id)
);
CREATE INDEX workflow_node_execution_node_run_idx
  ON workflow_node_executions (tenant_id, app_id, workflow_id, triggered_from, node_id);
CREATE INDEX workflow_node_execution_id_idx
  ON workflow_node_executions (tenant_id, app_id, workflow_id, triggered_from, node_execution_id);
CREATE INDEX workflow_node_executions_tenant_id_idx
  ON workflow_node_executions (tenant_id, workflow_id, node_id, created_at DESC);
CREATE INDEX workflow_node_execution_workflow_run_id_idx ON workflow_node_executions (workflow_run_id);  -- 1.12.0
-- 1.12.0 dropped: workflow_node_execution_workflow_run_idx

CREATE TABLE workflow_archive_logs (                                                                     -- 1.12.0
  id uuid DEFAULT uuidv7() NOT NULL, log_id uuid, tenant_id uuid NOT NULL, app_id uuid NOT NULL,
  workflow_id uuid NOT NULL, workflow_run_id uuid NOT NULL, created_by_role varchar(255) NOT NULL, created_by uuid NOT NULL,
  log_created_at timestamp, log_created_from varchar(255),
  run_version varchar(255) NOT NULL, run_status varchar(255) NOT NULL, run_triggered_from varchar(255) NOT NULL, run_error text,
  run_elapsed_time double precision DEFAULT 0 NOT NULL, run_total_tokens bigint DEFAULT 0 NOT NULL,
  run_total_steps integer DEFAULT 0, run_created_at timestamp NOT NULL, run_finished_at timestamp,
  run_exceptions_count integer DEFAULT 0, trigger_metadata text,
  archived_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
  CONSTRAINT workflow_archive_log_pkey PRIMARY KEY (id)
);
CREATE INDEX workflow_archive_log_app_idx ON workflow_archive_logs (tenant_id, app_id);
CREATE INDEX workflow_archive_log_run_created_at_idx ON workflow_archive_logs (run_created_at);
CREATE INDEX workflow_archive_log_workflow_run_id_idx ON workflow_archive_logs (workflow_run_id);
CREATE TABLE workflow_pause_reasons (   -- 2025_11_18_1859-7bb281b7a422 (commit 1c1f12489, 2025-11-26), first in 1.11.0
  id uuid NOT NULL, created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL, updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
  pause_id uuid NOT NULL, type_ varchar(20) NOT NULL /* sic: type_ */, form_id varchar(36) NOT NULL, node_id varchar(255) NOT NULL,
  message varchar(255) NOT NULL, CONSTRAINT workflow_pause_reasons_pkey PRIMARY KEY (id));
CREATE INDEX workflow_pause_reasons_pause_id_idx ON workflow_pause_reasons (pause_id);
CREATE TABLE workflow_app_logs (
  id uuid DEFAULT uuid_generate_v4() NOT NULL, tenant_id uuid NOT NULL, app_id uuid NOT NULL, workflow_id uuid NOT NULL,
  workflow_run_id uuid NOT NULL, created_from varchar(255) NOT NULL, created_by_role varchar(255) NOT NULL,
  created_by uuid NOT NULL, created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
  CONSTRAINT workflow_app_log_pkey PRIMARY KEY (id));
CREATE INDEX workflow_app_log_app_idx ON workflow_app_logs (tenant_id, app_id);
CREATE INDEX workflow_app_log_workflow_run_id_idx ON workflow_app_logs (workflow_run_id);              -- 1.8.1
-- needed for re-hydration:
CREATE TABLE upload_files (
  id uuid DEFAULT uuid_generate_v4() NOT NULL, tenant_id uuid NOT NULL, storage_type varchar(255) NOT NULL, key varchar(255) NOT NULL,
  name varchar(255) NOT NULL, size integer NOT NULL, extension varchar(255) NOT NULL, mime_type varchar(255),
  created_by uuid NOT NULL, created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL, used boolean DEFAULT false NOT NULL,
  created_by_role varchar(255) DEFAULT 'account' NOT NULL, used_by uuid, used_at timestamp, hash varchar(255),
  source_url text DEFAULT '' NOT NULL, CONSTRAINT upload_file_pkey PRIMARY KEY (id));
CREATE INDEX upload_file_tenant_idx ON upload_files (tenant_id);

CREATE TABLE workflow_node_execution_offload (                                            -- 1.9.0
  id                uuid DEFAULT uuidv7() NOT NULL,
  created_at        timestamp without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
  tenant_id         uuid NOT NULL,
  app_id            uuid NOT NULL,
  node_execution_id uuid,                  -- NULL = garbage-collectable
  type              varchar(20) NOT NULL,  -- 'inputs' | 'process_data' | 'outputs'
  file_id           uuid NOT NULL,         -- -> upload_files.id
  CONSTRAINT workflow_node_execution_offload_pkey PRIMARY KEY (id),
  CONSTRAINT workflow_node_execution_offload_node_execution_id_key UNIQUE (node_execution_id, type)
);
CREATE TABLE workflow_pauses (                                                            -- 1.10.0
  workflow_id uuid NOT NULL, workflow_run_id uuid NOT NULL, resumed_at timestamp,
  state_object_key varchar(255) NOT NULL,
  id uuid DEFAULT uuidv7() NOT NULL,
  created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL, updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
  CONSTRAINT workflow_pauses_pkey PRIMARY KEY (id),
  CONSTRAINT workflow_pauses_workflow_run_id_key UNIQUE (workflow_run_id)
);
CREATE TABLE workflow_trigger_logs (                                                      -- 1.10.0
  id uuid DEFAULT uuidv7() NOT NULL, tenant_id uuid NOT NULL, app_id uuid NOT NULL, workflow_id uuid NOT NULL,
  workflow_run_id uuid, root_node_id varchar(255), trigger_metadata text NOT NULL, trigger_type varchar(50) NOT NULL,
  trigger_data text NOT NULL, inputs text NOT NULL, outputs text, status varchar(50) NOT NULL, error text,
  queue_name varchar(100) NOT NULL, celery_task_id varchar(255), retry_count integer NOT NULL,
  elapsed_time double precision, total_tokens integer,
  created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL, created_by_role varchar(255) NOT NULL,
  created_by varchar(255) NOT NULL, triggered_at timestamp, finished_at timestamp,
  CONSTRAINT workflow_trigger_log_pkey PRIMARY KEY (id)
);
CREATE INDEX workflow_trigger_log_workflow_run_idx ON workflow_trigger_logs (workflow_run_id);
