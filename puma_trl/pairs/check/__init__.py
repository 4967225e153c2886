"""`pairs check`: what a pair file holds that training should not see."""
