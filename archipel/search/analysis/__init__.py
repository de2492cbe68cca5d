"""What a finished search says: which decisions matter, and whether small budgets rank as large ones do."""
