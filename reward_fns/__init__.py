"""Reward functions shipped with rlhf_pg, each written exactly as a user would write one."""
