DROP TABLE capacity_alerts;
