// finding_tables
