"""The recipe, a readable script a stage: lm (small scales), pretrain, align, ia_sft, joint_sft."""
