"""SeqVaultExampleGen: joins impressions with SeqVault histories, point in time, into Examples."""
