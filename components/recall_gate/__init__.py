"""RecallGate: lets a recall model through that finds enough of the clicks."""
