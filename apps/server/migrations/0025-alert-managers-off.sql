-- An alert manager that is disabled keeps its row, and with it when it last sent a test alert: disabling must not end the pause between two.
alter table alert_manager add column enabled boolean not null default true;
