"""`--plan`: the memory a configuration will take, part by part, from meta tensors alone. It imports `learner.model`
and `learner.trainer`, whose tensors it counts."""
